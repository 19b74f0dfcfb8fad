"""Seconds from the start of the process until ticks are answered, by stage; without and with compiled programs kept.

The stages are those that the daemon's log names. Programs are kept where JAX_COMPILATION_CACHE_DIR says.
"""

from collections.abc import Iterator

from benchmarks.report import Row
from benchmarks.stage import NO_TRAINING, Sections, Stage

STAGES = (
    ("starting", "import", "python, jax and the configuration"),
    ("compiled", "compile", "topics checked, every program for every size"),
    ("ready", "join", "models read, group joined; nothing to rebuild"),
)


def run(_quick: bool) -> Iterator[Row]:
    """A cold and a warm start; there is no quicker way."""
    sections: Sections = {"training": NO_TRAINING}
    with Stage() as stage:
        cache = stage.directory / "kept"
        for name in ("cold", "warm"):
            topics = stage.topics(name)
            with stage.daemon(name, topics, sections, cache) as daemon:
                daemon.await_ready()
                at_s, events = daemon.started_s, daemon.events()
            yield Row(f"{name} start to ready", events["ready"] - at_s, "s", f"{name} compilation cache")
            for event, stage_name, note in STAGES:
                yield Row(f"{name} start, {stage_name}", events[event] - at_s, "s", note)
                at_s = events[event]
