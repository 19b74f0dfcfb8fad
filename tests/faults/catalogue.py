"""The faults, by the numbers under which the tests name them: what is done, and which other tests do it already.

A fault with neither a test of this folder nor another one is not tried, and the report says so.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """What happens, which laws are checked, and tests outside of this folder that try it, as pytest names them."""

    what: str
    laws: str
    elsewhere: tuple[str, ...] = ()


LAWS = {
    "I1": "every input offset before the committed one is exactly one of answered, dropped (late, duplicate) or"
    " among the dead letters",
    "I2": "a reader of committed records sees at most one answer for a tick; with `at_least_once` each repeat says"
    " the same within 1e-5 of the scale",
    "I3": "in each series answers come in the order of their ticks",
    "I4": "the state of a series is that of a run without the fault",
    "I5": "every number is finite; only a model that was published answers",
    "I6": "work goes on within the time that the test gives, and no transaction stays open",
    "I7": "resident memory, series, queues and compiled programs stay bounded",
    "I8": "the fault is counted or said",
    "I9": "exit code; no child process and no temporary file is left",
}

_EVERY = "I1 I2 I3 I5 I6 I7 I9"
_TRANSACTION = "tests/broker/test_kafka_transaction.py::"
_DELIVERY = "tests/broker/test_kafka_delivery.py::"
_PROCESS = "tests/test_process.py::"
_HTTP = "tests/shell/test_http.py::"
_STATE = (
    "tests/shell/test_state.py::"
    "test_pages_that_cannot_be_used_are_counted_and_their_series_rebuilt_from_the_log"
)
_RETRAIN = "tests/shell/test_retrain.py::"

FAULTS = {
    "T1": Fault("SIGKILL at each named point of the work", _EVERY),
    "T2": Fault("SIGKILL at random moments under load, again and again", _EVERY),
    "T3": Fault(
        "a worker sleeps (SIGSTOP) until another has its partitions, then goes on",
        _EVERY,
        (_TRANSACTION + "test_a_ghost_cannot_commit_what_was_taken_from_it",),
    ),
    "T4": Fault(
        "the same, longer than a transaction may last",
        _EVERY,
        (_TRANSACTION + "test_a_transaction_that_the_broker_ended_for_being_too_old_is_done_again",),
    ),
    "T5": Fault(
        "two workers with one transactional id",
        _EVERY + " I8",
        (_TRANSACTION + "test_of_two_workers_with_one_identity_the_older_stops",),
    ),
    "T6": Fault(
        "two workers with one static identity",
        "I8 I9",
        (_DELIVERY + "test_of_two_workers_with_one_static_identity_the_older_stops",),
    ),
    "T7": Fault("brokers are killed and restarted: the only one; of three one after the other", _EVERY),
    "T8": Fault("a commit happens and its answer is lost; its coordinator is killed", _EVERY),
    "T9": Fault(
        "the broker is silent; connections are reset or half closed",
        _EVERY,
        (_DELIVERY + "test_a_broker_that_is_away_for_20_s_costs_neither_ticks_nor_memory",),
    ),
    "T10": Fault("a slow way to the broker: 1 s there and back, 50 KB/s", _EVERY),
    "T11": Fault("messages of a transaction are lost until the delivery timeout", _EVERY),
    "T12": Fault("answers to a producer claim that its sequence, identity or epoch is wrong", _EVERY),
    "T13": Fault("the group forgets a worker that has work in flight", _EVERY),
    "T14": Fault(
        "a coordinator says that it is loading, has moved, or is busy with another transaction", _EVERY
    ),
    "T15": Fault("a second worker joins and leaves, again and again", _EVERY),
    "T16": Fault(
        "half of the partitions are handed over in the middle of the work",
        _EVERY,
        (
            _TRANSACTION + "test_partitions_move_between_workers_and_each_tick_is_answered_once",
            _DELIVERY + "test_joining_and_leaving_repeats_at_most_one_batch",
        ),
    ),
    "T17": Fault(
        "the client's callbacks raise; one that takes long is not tried",
        "I6",
        ("tests/shell/test_kafka_source.py::test_whatever_comes_out_of_the_client_ends_in_a_new_one",),
    ),
    "T18": Fault("names are resolved slowly, wrongly, or not at all", _EVERY),
    "T19": Fault(
        "wrong passwords, authorities, certificates, keys, host names, protocols; rights that are missing",
        "I1 I2 I8 I9",
        ("tests/broker/test_kafka_security.py",),
    ),
    "T20": Fault("the topic is deleted and made again", "I6 I9"),
    "T21": Fault("the ticks topic gets more partitions", _EVERY),
    "T22": Fault(
        "retention has removed the committed offset",
        _EVERY + " I8",
        (
            _DELIVERY + "test_an_offset_that_retention_has_removed",
            _DELIVERY + "test_a_worker_may_stop_when_its_offset_is_gone",
        ),
    ),
    "T23": Fault("an unclean leader election: ticks that were answered are lost", "I6 I8 I9"),
    "T24": Fault(
        "ticks in transactions, some of them aborted: offsets have gaps",
        _EVERY,
        ("tests/broker/test_kafka_log.py::test_aborted_records_are_skipped_and_the_end_is_reached",),
    ),
    "T25": Fault("records that are no ticks: broken, deep, huge, null, wrong types", _EVERY),
    "T26": Fault(
        "a batch whose checksum is wrong each time it is read",
        _EVERY + " I8",
        (
            _DELIVERY + "test_a_batch_that_cannot_be_decoded_leads_to_a_new_client_not_to_a_hang",
            _DELIVERY + "test_a_batch_that_stays_unreadable_is_passed_over_and_all_others_are_answered",
            _DELIVERY + "test_a_worker_may_stop_at_what_it_cannot_read",
        ),
    ),
    "T27": Fault(
        "a record, and a batch, that kills whoever decodes it; gigabytes are not really inflated",
        "I1 I8",
        ("tests/broker/test_poison.py",),
    ),
    "T28": Fault("denormal, huge, constant and negative-zero values", _EVERY),
    "T29": Fault("fields that are added, renamed, or of another type", _EVERY),
    "T30": Fault("duplicates, late ticks, equal times: part of the load of every test", _EVERY),
    "T31": Fault("event times ten years ahead and ten years ago", _EVERY),
    "T32": Fault(
        "more series than there is room for",
        "I1 I7",
        (
            "tests/core/test_fold.py::test_over_the_cap_ticks_are_told_and_the_others_served",
            "tests/core/test_snapshot.py::test_series_that_find_no_row_are_left_out",
            "tests/test_flow.py::test_the_cap_is_an_outcome_and_not_a_silence",
        ),
    ),
    "T33": Fault("one series has nearly all ticks", _EVERY),
    "T34": Fault("no file can grow: temporary, compiled programs, log", _EVERY),
    "T35": Fault(
        "damaged, cut, foreign and future records on the state topic",
        "I4 I8",
        (
            _STATE,
            "tests/core/test_pages.py::test_bytes_that_were_cut_or_changed_are_refused",
            "tests/core/test_pages.py::test_bytes_of_somebody_else_are_refused",
        ),
    ),
    "T36": Fault("state records newer than the committed offset, or of another group", "I4 I8", (_STATE,)),
    "T37": Fault("a trainer is killed between a model and its serving record", _EVERY),
    "T38": Fault(
        "a trainer is killed, hangs, grows",
        _EVERY + " I8",
        (
            _RETRAIN + "test_a_trainer_that_dies_or_babbles_has_crashed",
            _RETRAIN + "test_a_trainer_that_hangs_is_killed_when_its_time_is_up",
            _RETRAIN + "test_a_trainer_that_ignores_the_first_signal_gets_the_second",
            _RETRAIN + "test_a_trainer_that_grows_is_killed_from_outside",
            _RETRAIN + "test_a_trainer_dies_with_its_parent",
        ),
    ),
    "T39": Fault(
        "a retrained model is worse than the one that serves",
        "I5",
        (
            "tests/broker/test_retrain.py::test_a_worse_model_is_replaced_and_a_candidate_that_is_no_better_is_refused",
        ),
    ),
    "T40": Fault(
        "SIGTERM at start, without a broker, while joining, in a transaction, while training, with a silent broker",
        _EVERY,
        (_PROCESS + "test_it_answers_every_tick_takes_its_signals_and_leaves_in_order",),
    ),
    "T41": Fault(
        "a thousand SIGUSR1; SIGHUP with a broken file",
        "I1 I2 I8 I9",
        (
            _PROCESS + "test_a_thousand_requests_lead_to_at_most_two_retrains_and_a_stop_ends_the_trainer",
            _PROCESS + "test_it_answers_every_tick_takes_its_signals_and_leaves_in_order",
        ),
    ),
    "T42": Fault(
        "a second SIGTERM or SIGINT",
        "I9",
        ("tests/shell/test_signals.py::test_the_first_asks_to_stop_and_the_second_stops",),
    ),
    "T43": Fault(
        "clients of the HTTP port that dribble, never end, do not read, or send huge lines",
        "I7",
        (
            _HTTP + "test_two_hundred_clients_that_dribble_their_headers_keep_no_probe_out",
            _HTTP + "test_a_request_that_never_ends_is_cut_off_at_its_deadline",
            _HTTP + "test_a_client_that_does_not_read_is_cut_off_at_its_deadline",
            _HTTP + "test_a_huge_request_line_is_refused_without_being_kept",
            _HTTP + "test_a_port_in_use_is_an_error_of_the_configuration",
        ),
    ),
    "T44": Fault("batches of every size: nothing is compiled after the start", _EVERY),
    "T45": Fault("descriptors and CPU run out; threads are not tried", _EVERY),
    "T46": Fault("a soak: see below", _EVERY),
    "T47": Fault(
        "state, models and messages that an earlier release wrote are read, those of a newer one refused",
        "I4",
        ("tests/core/test_pages.py::test_what_was_written_once_can_still_be_read", "tests/test_recorded.py"),
    ),
    "T48": Fault("two workers at once, of which one is configured for the next network", _EVERY),
}
