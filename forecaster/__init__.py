"""forecaster: a fold over the tick log, with a recurrent network inside."""
