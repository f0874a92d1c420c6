"""JetStream's API and its streams on a virtual clock: one server (R1), or three of them (R3).

Speaks as nats-server 2.15.1 does, as far as the ledger listens; the contract tests hold it against
the real one. What the two dialects do differently is what `FIELD_NOTES` and those tests found:

- R1: one thing after the other. A batch is stored message by message; readers see it before its
  commit. A disk that is wedged stays in that state until the server is restarted: it still refuses
  what does not fit the messages that lie there, and says nothing to what does. A restart completes
  the batch (2.15.1 does, with the messages that it has set aside), or forgets it, and then its
  sequences are issued again;
- R3: a write is on its way for a while, and another one to its subject meets 10164. Any replica
  answers a Direct Get, with what it has. A change of leader drops what is on its way, or stores it,
  and answers neither.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE

from .clock import Clock
from .consumers import Consumers, Pull
from .copies import Copies
from .stream import Batch, Kept, Refusal, Sent, Stream, commits, refusal
from .weather import Weather
from .wire import MAX_PAYLOAD, PING, Connection, Headers, Wire

BATCHES_MAX = 50
BATCH_MESSAGES_MAX = 1_000
BATCH_ABANDONED_S = 10.0
NO_RESPONDERS: Headers = {"Status": "503"}
NOT_FOUND: Headers = {"Status": "404", "Description": "Message Not Found"}

Answer = Callable[[Headers | None, bytes], None]


class Server:
    """The streams, and everybody who is connected. `trace` is everything that reached it."""

    def __init__(self, clock: Clock, weather: Weather, *, replicas: int = 1) -> None:
        self.clock = clock
        self.weather = weather
        self.replicas = replicas
        self.copies = Copies(replicas)
        self.consumers = Consumers(self.copies, lambda: self._paused is not None)
        self.streams: dict[str, Stream] = {}
        self.connections: list[Connection] = []
        self.trace: list[str] = []
        self.said: Counter[int] = Counter()
        self.down = False
        self.wedged = False
        self._wedging = False
        self._loop = asyncio.get_running_loop()
        self._paused: list[Callable[[], None]] | None = None
        self._busy: dict[str, list[Callable[[], None]]] = {}
        self._half_done: dict[str, list[Sent]] = {}  # what is still to be written of a batch
        self._batches: dict[tuple[str, str], Batch] = {}
        self._proposed: list[tuple[Stream, list[Sent], Answer]] = []
        self._leaderless = False
        self._term = 0
        self._committed_at = 0.0
        self._by_subject: dict[str, Stream | None] = {}

    # -- the network's side ------------------------------------------------------------------------

    def receive(self, connection: Connection, epoch: int, wire: Wire) -> None:
        """A message has come."""
        if self.down:
            return
        if self._paused is not None:
            self._paused.append(lambda: self.receive(connection, epoch, wire))
            return
        _, subject, reply, headers, body, again = wire

        def answer(headers: Headers | None, body: bytes) -> None:
            if reply:
                connection.deliver(epoch, Wire(reply, reply, "", headers, body))

        self.log(f"{connection.name} {_shown(subject)} {len(body)}")
        if subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            pull = Pull.of(json.loads(body), connection, epoch, reply)
            if not self.consumers.pull(subject.rpartition(".")[2], pull):
                answer(NO_RESPONDERS, b"")
            return
        if subject.startswith("$JS.API."):
            self._api(subject[8:], json.loads(body) if body else {}, answer)
            return
        if subject == PING:
            answer(None, b"")
            return
        stream = self._stream_of(subject)
        if stream is None and self._pass_on(subject, headers, body):
            return
        if stream is None or (not again and self.weather.strikes("no responders")):
            answer(NO_RESPONDERS, b"")
        else:
            self._publish(stream, Sent(subject, headers or {}, body), answer, again=again)

    def _pass_on(self, subject: str, headers: Headers | None, body: bytes) -> bool:
        """Sends a message to all who have subscribed to its subject; whether there are any."""
        hearing = [each for each in self.connections if each.hears(subject)]
        for each in hearing:
            each.deliver(each.epoch, Wire(subject, subject, "", headers, body))
        return bool(hearing)

    def _lay(self, stream: Stream, messages: list[Sent]) -> None:
        """Writes messages, and sends their live copies (R1: as they come to lie there)."""
        before = len(stream.log)
        stream.write(messages, self.clock.time_ns())
        source, live = stream.republished
        if not live:
            return
        for kept in stream.log[before:]:
            headers = _direct_headers(stream, kept)
            self._pass_on(live + kept.subject.removeprefix(source), headers, kept.body)

    def log(self, line: str) -> None:
        """Adds a line to the trace."""
        self.trace.append(f"{self.clock.now:.6f} {line}")

    def _stream_of(self, subject: str) -> Stream | None:
        if subject not in self._by_subject:
            found = [each for each in self.streams.values() if each.takes(subject)]
            self._by_subject[subject] = found[0] if found else None
        return self._by_subject[subject]

    # -- publishing --------------------------------------------------------------------------------

    def _publish(
        self, stream: Stream, message: Sent, answer: Answer, *, again: bool = False
    ) -> None:
        waiting = self._busy.get(stream.name)
        if waiting is not None:
            waiting.append(lambda: self._publish(stream, message, answer, again=again))
            return
        if self._leaderless:
            return  # nobody takes it, nobody says so
        error = None if again else self._made_up(message)
        if error is not None:
            self._forget_batch(stream, message)
            self._refuse(stream, error, answer)
        elif BATCH_ID in message.headers:
            self._stage(stream, message, answer)
        elif self.replicas > 1:
            self._propose(stream, [message], answer)
        else:
            self._store(stream, [message], answer)

    def _made_up(self, message: Sent) -> Refusal | None:
        strikes = self.weather.strikes
        if BATCH_ID in message.headers and not commits(message):
            return None
        if strikes("read error"):
            return refusal(10071, "wrong last sequence: 0")
        if strikes("in flight"):
            return refusal(10164, "wrong last sequence")
        if strikes("id in process"):
            return refusal(10158, "duplicate message id is in process", 409)
        if strikes("too many batches"):
            return refusal(10210, "atomic publish too many inflight", 429)
        if strikes("incomplete"):
            return refusal(10176, "atomic publish batch is incomplete")
        if strikes("no leader"):
            return refusal(10008, "JetStream system temporarily unavailable", 503)
        return None

    def _stage(self, stream: Stream, message: Sent, answer: Answer) -> None:
        id = message.headers[BATCH_ID]
        key = (stream.name, id)
        if len(id) > 64:
            self._refuse(stream, refusal(10179, "atomic publish batch ID is invalid"), answer)
            return
        if BATCH_SEQUENCE not in message.headers:
            self._refuse(stream, refusal(10175, "atomic publish sequence is missing"), answer)
            return
        batch = self._batches.get(key)
        if batch is None:
            if message.headers[BATCH_SEQUENCE] != "1":
                self._incomplete(stream, message, answer)
                return
            if len(self._batches) >= BATCHES_MAX:
                self._refuse(
                    stream, refusal(10210, "atomic publish too many inflight", 429), answer
                )
                return
            batch = self._batches[key] = Batch()
            self._loop.call_later(BATCH_ABANDONED_S, self._abandon, key, batch)
        if not batch.add(message):
            del self._batches[key]
            self._incomplete(stream, message, answer)
            return
        if len(batch.messages) > BATCH_MESSAGES_MAX:
            del self._batches[key]
            self._refuse(stream, refusal(10199, "atomic publish batch is too large"), answer)
            return
        if not commits(message):
            answer(None, b"")
            return
        del self._batches[key]
        if message.headers[BATCH_COMMIT] != "1":
            self._refuse(stream, refusal(10200, "atomic publish batch commit is invalid"), answer)
        elif self.replicas > 1:
            self._propose(stream, batch.messages, answer)
        else:
            self._store(stream, batch.messages, answer)

    def _abandon(self, key: tuple[str, str], batch: Batch) -> None:
        if self._batches.get(key) is batch:
            del self._batches[key]

    def _forget_batch(self, stream: Stream, message: Sent) -> None:
        self._batches.pop((stream.name, message.headers.get(BATCH_ID, "")), None)

    def _incomplete(self, stream: Stream, message: Sent, answer: Answer) -> None:
        if commits(message):
            self._refuse(stream, refusal(10176, "atomic publish batch is incomplete"), answer)

    def _refuse(self, stream: Stream, error: Refusal, answer: Answer) -> None:
        self.said[error["err_code"]] += 1
        self.log(f"  {stream.name} refuses: {error['err_code']}")
        _tell(answer, {"error": error, "stream": stream.name, "seq": 0})

    def _stored(self, stream: Stream, messages: list[Sent], seq: int, answer: Answer) -> None:
        self.log(f"  {stream.name} has {seq - len(messages) + 1}..{seq}")
        told: dict[str, Any] = {"stream": stream.name, "seq": seq}
        if BATCH_ID in messages[0].headers:
            told |= {"batch": messages[0].headers[BATCH_ID], "count": len(messages)}
        _tell(answer, told)
        self.consumers.feed(stream)

    def _refused(self, stream: Stream, messages: list[Sent], answer: Answer) -> bool:
        in_flight = {
            message.subject
            for proposed, others, _ in self._proposed
            if proposed is stream
            for message in others
        }
        error = stream.refusal_of(messages, in_flight, clustered=self.replicas > 1)
        if error is None:
            return False
        if "duplicate" in error:
            _tell(answer, {"stream": stream.name, "seq": error["duplicate"], "duplicate": True})
        else:
            self._refuse(stream, error, answer)
        return True

    # -- one server --------------------------------------------------------------------------------

    def _store(self, stream: Stream, messages: list[Sent], answer: Answer) -> None:
        if self._refused(stream, messages, answer) or self.wedged:
            return
        if len(messages) == 1:
            if not self._wedging:
                self._lay(stream, messages)
                self._stored(stream, messages, stream.commit(), answer)
            return
        # Its messages lie there one after the other, and only then are they the stream's.
        first = self.weather.random.randint(0, len(messages) - 1)
        self._lay(stream, messages[:first])
        self._half_done[stream.name] = messages[first:]
        self.consumers.feed(stream)
        if self._wedging:
            self.wedged = True
            self.log(f"  {stream.name} is wedged with {first} of {len(messages)}")
            return
        waiting = self._busy[stream.name] = []

        def end() -> None:
            if self._busy.get(stream.name) is waiting:  # else: the server was killed meanwhile
                del self._busy[stream.name]
                self._lay(stream, self._half_done.pop(stream.name))
                self._stored(stream, messages, stream.commit(), answer)
                for publish in waiting:
                    publish()

        self._loop.call_later(self.weather.latency() * 2, end)

    def wedge(self) -> None:
        """The disk is full: the next write stays where it is, half done, and so does all else."""
        self._wedging = True

    def kill(self, down_s: float, *, forget: int = 0) -> None:
        """A crash; it is back after `down_s` seconds, without the last `forget` messages."""
        self.log(f"KILL, down {down_s:.2f} s, forgetting {forget}")
        self.down = True
        self._paused = None
        self.wedged = self._wedging = False
        self._busy.clear()
        self._batches.clear()
        self.consumers.clear()
        for stream in self.streams.values():
            rest = self._half_done.pop(stream.name, None)
            if rest is not None and self.weather.random.random() < 0.5:
                stream.write(rest, self.clock.time_ns())
                stream.commit()
            stream.cut(stream.committed)
            if forget:
                stream.cut(max(0, stream.committed - forget))
        for connection in self.connections:
            connection.lose(down_s + self.weather.random.random() * 0.2)
        self._loop.call_later(down_s, self._up)

    def _up(self) -> None:
        self.down = False

    def pause(self, seconds: float) -> None:
        """It stands still (SIGSTOP); what is sent to it meanwhile is carried out afterwards."""
        if self._paused is None and not self.down:
            self.log(f"PAUSE {seconds:.2f} s")
            self._paused = []
            self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        missed, self._paused = self._paused or [], None
        for each in missed:
            each()

    # -- three servers -----------------------------------------------------------------------------

    def _propose(self, stream: Stream, messages: list[Sent], answer: Answer) -> None:
        if self._refused(stream, messages, answer):
            return
        self._proposed.append((stream, messages, answer))
        self._committed_at = max(
            self._committed_at + 1e-7, self.clock.now + self.weather.latency() * 3
        )
        self._loop.call_at(self._committed_at, self._apply, self._term)

    def _apply(self, term: int) -> None:
        if term == self._term:
            stream, messages, answer = self._proposed.pop(0)
            self._commit(stream, messages, answer)

    def _commit(self, stream: Stream, messages: list[Sent], answer: Answer) -> None:
        # A refusal at the proposal is what keeps conflicts out; this is the log's own order.
        self._lay(stream, messages)
        seq = stream.commit()
        for replica in range(1, self.replicas):
            lag = self.weather.latency()
            if self.weather.random.random() < 0.2:
                lag += self.weather.random.random() * 0.3
            self._loop.call_later(lag, self._catch_up, stream, replica, seq)
        self._stored(stream, messages, seq, answer)

    def _catch_up(self, stream: Stream, replica: int, seq: int) -> None:
        if self.copies.catch_up(stream, replica, seq):
            self.consumers.feed(stream)

    def change_leader(self, seconds: float) -> None:
        """The leader is gone; `seconds` later another one has its place."""
        if self._leaderless:
            return
        kept = self.weather.random.randint(0, len(self._proposed))
        self.log(f"LEADER GONE for {seconds:.2f} s, {kept} of {len(self._proposed)} stored")
        self._leaderless = True
        self._term += 1
        proposed, self._proposed = self._proposed, []
        for stream, messages, _ in proposed[:kept]:
            self._commit(stream, messages, _nobody)
        self._batches.clear()
        self.consumers.lose(0)
        self._loop.call_later(seconds, self._led)

    def _led(self) -> None:
        self._leaderless = False

    # -- reading -----------------------------------------------------------------------------------

    def _some_replica(self) -> int:
        first = 1 if self._leaderless else 0
        return self.weather.random.randrange(first, self.replicas) if self.replicas > 1 else 0

    def _direct(self, stream: Stream, asked: dict[str, Any], answer: Answer) -> None:
        replica = self._some_replica()
        upto = self.copies.upto(stream, replica)
        if "batch" in asked or "multi_last" in asked:
            self._direct_page(stream, asked, upto, answer, replica)
            return
        found = self._chosen(stream, asked, upto)
        if found is None or not self.copies.has(replica, found):
            answer(dict(NOT_FOUND), b"")
        else:
            answer(_direct_headers(stream, found), found.body)

    def _direct_page(
        self, stream: Stream, asked: dict[str, Any], upto: int, answer: Answer, replica: int
    ) -> None:
        end: Headers = {"Status": "204", "Description": "EOB"}
        if "multi_last" in asked:
            upto = min(upto, asked.get("up_to_seq") or upto)
            found = [m for s in asked["multi_last"] if (m := stream.last(s, upto)) is not None]
            end["Nats-UpTo-Sequence"] = str(upto)
            chosen = found
        else:
            found = stream.from_seq(asked.get("seq", 1), asked["next_by_subj"], upto)
            chosen, size = [], 0
            for message in found[: asked["batch"]]:
                chosen.append(message)
                size += message.size
                if size >= (asked.get("max_bytes") or MAX_PAYLOAD):
                    break
        chosen = [each for each in chosen if self.copies.has(replica, each)]
        if not chosen:
            answer(dict(NOT_FOUND), b"")
            return
        previous, pending = 0, len(found)
        for message in chosen:
            pending -= 1
            added = {"Nats-Num-Pending": str(pending), "Nats-Last-Sequence": str(previous)}
            previous = message.seq
            if not self.weather.strikes("message of a page lost"):
                answer(_direct_headers(stream, message) | added, message.body)
        end |= {"Nats-Num-Pending": str(pending), "Nats-Last-Sequence": str(previous)}
        answer(end, b"")

    def _chosen(self, stream: Stream, asked: dict[str, Any], upto: int) -> Kept | None:
        if "last_by_subj" in asked:
            return stream.last(asked["last_by_subj"], upto)
        if "next_by_subj" in asked:
            found = stream.from_seq(asked.get("seq", 1), asked["next_by_subj"], upto)
            return found[0] if found else None
        return stream.at(asked["seq"], upto)

    # -- the API -----------------------------------------------------------------------------------

    def _api(self, api: str, asked: dict[str, Any], answer: Answer) -> None:
        if api.startswith("DIRECT.GET."):
            name, _, subject = api[11:].partition(".")
            if name not in self.streams or self.weather.strikes("no responders"):
                answer(NO_RESPONDERS, b"")
            else:
                self._direct(
                    self.streams[name], {"last_by_subj": subject} if subject else asked, answer
                )
            return
        if self._leaderless:
            return
        if self.weather.strikes("no leader"):
            said = refusal(10008, "JetStream system temporarily unavailable", 503)
            _tell(answer, {"error": said})
            return
        _tell(answer, self._managed(api, asked))

    def _managed(self, api: str, asked: dict[str, Any]) -> dict[str, Any]:
        operation, name = _split(api)
        if operation == "STREAM.CREATE":
            if name not in self.streams:
                self.streams[name] = Stream(asked, self.clock.time_ns())
                self._by_subject.clear()
            return self._info(self.streams[name])
        stream = self.streams.get(name)
        if stream is None:
            return {"error": refusal(10059, "stream not found", 404)}
        upto = self.copies.upto(stream, 0)
        match operation:
            case "STREAM.INFO":
                return self._info(stream)
            case "STREAM.PURGE" if stream.config.get("deny_purge"):
                return {"error": refusal(10110, "stream purge not permitted", 500)}
            case "STREAM.MSG.DELETE" if stream.config.get("deny_delete"):
                return {"error": refusal(10057, "message delete not permitted", 500)}
            case "STREAM.MSG.GET":
                found = self._chosen(stream, asked, upto)
                if found is None or not self.copies.has(0, found):
                    return {"error": refusal(10037, "no message found", 404)}
                return {"message": _got(found)}
            case "CONSUMER.CREATE":
                replica = self.weather.random.randrange(self.replicas)
                return self.consumers.create(stream, asked["config"], replica)
            case "CONSUMER.DELETE":
                return {"success": self.consumers.delete(api.rpartition(".")[2])}
        raise AssertionError(f"the fake does not know {api}")

    def _info(self, stream: Stream) -> dict[str, Any]:
        upto = self.copies.upto(stream, 0)
        return {
            "config": stream.config,
            "created": _rfc3339(stream.created_ns),
            "state": {"messages": upto, "first_seq": min(1, upto), "last_seq": upto},
        }


def _nobody(headers: Headers | None, body: bytes) -> None:
    """Answers to a write that nobody waits for any more."""


def _tell(answer: Answer, told: dict[str, Any]) -> None:
    answer(None, json.dumps(told).encode())


def _split(api: str) -> tuple[str, str]:
    """The operation and the stream of a subject of the API."""
    tokens = api.split(".")
    words = 3 if tokens[:2] == ["STREAM", "MSG"] else 2
    return ".".join(tokens[:words]), tokens[words]


def _direct_headers(stream: Stream, message: Kept) -> Headers:
    return message.headers | {
        "Nats-Stream": stream.name,
        "Nats-Subject": message.subject,
        "Nats-Sequence": str(message.seq),
        "Nats-Time-Stamp": _rfc3339(message.time_ns),
    }


def _got(message: Kept) -> dict[str, Any]:
    """The `message` of an answer to `STREAM.MSG.GET`."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
    told = {
        "subject": message.subject,
        "seq": message.seq,
        "data": b64encode(message.body).decode(),
        "time": _rfc3339(message.time_ns),
    }
    if message.headers:
        told["hdrs"] = b64encode(f"NATS/1.0\r\n{lines}\r\n".encode()).decode()
    return told


def _rfc3339(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _shown(subject: str) -> str:
    """A subject without what is made up anew in each run."""
    if subject.startswith("$JS.API.CONSUMER."):
        return ".".join(subject.split(".")[:5])
    return subject
