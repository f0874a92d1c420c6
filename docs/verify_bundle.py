"""Checks an evidence bundle of Conversation Ledger: `python3 verify_bundle.py BUNDLE [KEY]`.

Needs Python 3.10 or newer and nothing else: no package, no server, none of the ledger's own code.
KEY is the notary's public key as it was published (NAME+HEX+BASE64). Says what the bundle shows,
with exit status 0; or why it shows nothing, with 1. audit.md and verification.md say what is
checked here.
"""

import hashlib
import json
import re
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from urllib.parse import quote


class Refused(Exception):
    """Why the bundle shows nothing."""


def require(holds, why):
    if not holds:
        raise Refused(why)


def sha256(data):
    return hashlib.sha256(data).digest()


# -- Ed25519 (RFC 8032, section 5.1.7): points as (X, Y, Z, T) -------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)


def plus(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(factor, point):
    total = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            total = plus(total, point)
        point = plus(point, point)
        factor >>= 1
    return total


def same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def point_of(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    require(y < P, "a key or signature is not a point of the curve")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_1 % P
    require((x * x - square) % P == 0, "a key or signature is not a point of the curve")
    require(x or not sign, "a key or signature is not a point of the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def is_signed(key, text, signature):
    if len(signature) != 64:
        return False
    scalar = int.from_bytes(signature[32:], "little")
    if scalar >= ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + key + text).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    known = plus(point_of(signature[:32]), times(challenge, point_of(key)))
    return same(times(scalar, BASE), known)


# -- signed notes (C2SP signed-note) ---------------------------------------------------------------


def decoded(text):
    raw = b64decode(text, validate=True)
    require(b64encode(raw).decode() == text, "something is not as base64 is written")
    return raw


def key_of(line):
    """(name, key id, the key's 32 bytes) of a public key's line."""
    name, key_id, encoded = line.split("+", 2)
    raw = decoded(encoded)
    require(len(raw) == 33 and raw[:1] == b"\x01", "a public key is not one of Ed25519")
    expected = sha256(name.encode() + b"\n" + raw)[:4]
    require(expected.hex() == key_id, "a public key is damaged: its id does not fit")
    return name, expected, raw[1:]


def opened(note, line):
    """The note's text, which the key of that line has to have signed."""
    name, key_id, key = key_of(line)
    text, gap, below = note.rpartition("\n\n")
    require(gap and below.endswith("\n"), "something is no signed note")
    text += "\n"
    mine = []
    for signature in below[:-1].split("\n"):
        dash, by, encoded = signature.split(" ")
        require(dash == "\u2014", "a note has a line below its text that is no signature")
        raw = decoded(encoded)
        if (by, raw[:4]) == (name, key_id):
            mine.append(raw[4:])
    require(mine, "a note is not signed by " + line)
    require(all(is_signed(key, text.encode(), each) for each in mine), "a signature is false")
    return text


def last_key(records):
    """The line of the key that signs at the end of the notary's history; every line in it."""
    lines = []
    for note in records:
        text = note.rpartition("\n\n")[0] + "\n"
        found = re.fullmatch(r"conversation-ledger/key\n(\S+)\ntime \S+\nreplaces (\S+)\n", text)
        require(found, "a key record is none")
        line, replaces = found.groups()
        opened(note, line)
        before = "none"
        if lines:
            opened(note, lines[-1])
            before = "sha256:" + sha256(key_of(lines[-1])[2]).hex()
        require(replaces == before, "a key does not replace the one before it")
        lines.append(line)
    require(lines, "no key is introduced")
    return lines


# -- the Merkle tree (RFC 6962, section 2.1) -------------------------------------------------------


def root_of(start, end, leaves, cover):
    """The root over entries start ... end - 1: of `leaves`, by place; else the next of `cover`."""
    if not leaves:
        require(cover, "the tree around its events is not complete")
        return cover.pop(0)
    if end - start == 1:
        return leaves[start]
    middle = start + (1 << ((end - start - 1).bit_length() - 1))
    within = {place: leaf for place, leaf in leaves.items() if place < middle}
    beyond = {place: leaf for place, leaf in leaves.items() if place >= middle}
    left = root_of(start, middle, within, cover)
    return sha256(b"\x01" + left + root_of(middle, end, beyond, cover))


# -- the bundle ------------------------------------------------------------------------------------


def token(id):
    return quote(id, safe="~:@=+_-").replace(".", "%2E")


def shown_by(bundle, pinned):
    """What the bundle shows, in lines; raises Refused, or another error for what is none."""
    lines = bundle.splitlines(keepends=True)
    values = [json.loads(line) for line in lines]
    for line, value in zip(lines, values, strict=True):
        written = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        require(line == written, "a line is not as it was written")
    head, manifest = values[0], values[-1]["manifest"]
    require(head["format"] == "conversation-ledger evidence/1", "its format is another one")
    kinds = [next(iter(value)) for value in values[1:-1]]
    require(all(len(value) == 1 for value in values[1:]), "a line says more than one thing")
    require(kinds == sorted(kinds, key=["event", "key", "checkpoint", "cover"].index), "its order")
    parts = {kind: [v[kind] for v in values[1:-1] if kind in v] for kind in set(kinds)}
    events = parts.get("event", [])

    # 1. The manifest's digests.
    behind = 1 + len(events)
    digests = {
        "events": hashlib.sha256(b"".join(lines[1:behind])).hexdigest(),
        "records": hashlib.sha256(b"".join(lines[behind:-1])).hexdigest(),
        "all": hashlib.sha256(b"".join(lines[:-1])).hexdigest(),
    }
    require(manifest["sha256"] == digests, "its bytes are not those of its manifest")

    # 2. The chain: every version, every hash; each body speaks of this conversation.
    ids = [head["tenant_id"], head["conversation_id"]]
    partition = str(head["partition"])
    subject = ".".join(["convo", "evt", partition, *map(token, ids)])
    require(head["subject"] == subject, "its subject is not that of its conversation")
    require(head["stream"] == "CONVO-EVENTS-" + partition, "its stream is another one's")
    digest, last_seq, leaves = bytes(32), 0, {}
    for version, event in enumerate(events, 1):
        body, headers = event["body"].encode(), event["headers"]
        digest = sha256(digest + body)
        said = json.loads(body)
        where = f"version {version} is not what was written"
        require(headers["Event-Hash"] == digest.hex(), where)
        require(headers["Event-Version"] == str(version) == str(said["version"]), where)
        require(headers["Event-Type"] == said["type"], where)
        require([said["tenant_id"], said["conversation_id"]] == ids, where)
        require(event["subject"] == subject and event["seq"] > last_seq, where)
        last_seq = event["seq"]
        entry = "{} {} {} {} {}\n".format(
            last_seq, subject, said["type"], version, headers["Event-Hash"]
        )
        leaves[last_seq - 1] = sha256(b"\x00" + entry.encode())

    # 3. The checkpoint: who signed it, and that it counted these events.
    covered, told = 0, ["no checkpoint: this shows only that the events fit each other"]
    if "checkpoint" in parts:
        (note,) = parts["checkpoint"]
        keys = last_key(parts.get("key", []))
        require(pinned is None or pinned in keys, "the key that was given does not vouch for it")
        origin, size, root, number, time, _ = opened(note, keys[-1])[:-1].split("\n")
        require(origin.split("/")[1] == head["stream"], "its checkpoint is of another partition")
        counted = {place: leaf for place, leaf in leaves.items() if place < int(size)}
        (cover,) = parts["cover"]
        roots = [bytes.fromhex(each) for each in cover]
        found = root_of(0, int(size), counted, roots)
        require(found == decoded(root) and not roots, "its checkpoint did not count these events")
        covered = len(counted)
        told = [
            f"{covered:,} of them counted by checkpoint {number.split()[1]} at {time.split()[1]}",
            f"signed by {keys[-1]}",
        ]
    else:
        require(pinned is None, "it holds no checkpoint, so no key vouches for it")
    counts = (manifest["events"], manifest["covered"], manifest["head_hash"])
    require(counts == (len(events), covered, digest.hex()), "its manifest counts something else")
    require(set(manifest) == {"events", "covered", "head_hash", "sha256"}, "its manifest")
    return [
        "valid: {}, {:,} events, hash {}".format("/".join(ids), len(events), digest.hex()),
        *told,
    ]


def main(path, pinned=None):
    try:
        print("\n  ".join(shown_by(Path(path).read_bytes(), pinned)))  # noqa: T201 (for a person)
    except Refused as refused:
        sys.exit(f"NOT VALID: {refused}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        sys.exit(f"NOT VALID: it is no bundle ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main(*sys.argv[1:])
