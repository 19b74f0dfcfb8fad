"""Topics in and out, transactions and commits: the only package that imports kafka-python.

Here only what costs nothing to import; the rest by its file:

    spec         how to reach the broker; names of the topics
    record       a record, and what happens to partitions
    client       specs -> keywords of the client; its errors -> ours
    login        two mends for how the library logs in
    tls          certificates, and why a connection over TLS was refused
    source       ticks in: a member of the group
    listener     the rebalance callbacks
    joining      two mends for joins that outlive a poll
    notes        what stands beside a committed offset: who was at work, what killed
    hazards      what these notes warn of, for who reads the ticks without being a member
    policy       where to read when nothing usable is committed
    progress     which partitions are silent
    batches      a look at each batch before it is decoded
    parked       what came for a partition while it was paused
    unreadable   batches that no client can decode
    sink         messages out, bounded, acknowledged
    delivery     at least once: commit only what was acknowledged
    transaction  exactly once: messages and offsets in one transaction
    together     messages that appear together or not at all, beside the stream
    log          reads any slice of any topic, without a group
    admin        creates and checks topics
    settings     how topics have to be set up, and what is not so
    rights       what has to be allowed, and what is not
"""

from forecaster.shell.kafka.record import Assigned, Change, Lost, Moved, MoveReason, Record, Revoked
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

__all__ = [
    "Assigned",
    "Change",
    "KafkaSpec",
    "Lost",
    "MoveReason",
    "Moved",
    "Record",
    "Revoked",
    "TopicsSpec",
]
