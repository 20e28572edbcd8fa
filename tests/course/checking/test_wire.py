"""What passes between the grader and a worker: data comes out as it went in, strides included; all else is refused."""

import json
import math
import os
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.course.checking import wire

DTYPES = sorted(wire._DTYPES.values(), key=str)
leaves = st.none() | st.booleans() | st.integers(-(2**500), 2**500) | st.floats() | st.text(max_size=20)
tensors = st.builds(
    lambda dtype, shape, seed: (
        torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(torch.float32).to(dtype)
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=4),
    st.integers(0, 9),
)
values = st.recursive(
    leaves | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=8,
)


def round_trip(value, **options):
    """The value after a journey in pieces of seven bytes."""
    frame, frames = wire.pack(value), wire.Frames()
    pieces = (frame[i : i + 7] for i in range(0, len(frame), 7))
    (found,) = [each for piece in pieces for each in frames.feed(piece)]
    return wire.unpack(*found, **options)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and a.dtype == b.dtype and torch.equal(a.view(a.shape).double(), b.double())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or a != a and b != b)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@given(values)
def test_plain_data_comes_back_as_it_was(value):
    assert same(value, round_trip(value))


def test_special_floats_and_zeros_keep_their_bits():
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    assert torch.equal(round_trip(x).view(torch.int32), x.view(torch.int32))
    assert math.copysign(1, round_trip(-0.0)) == -1 and math.isnan(round_trip(math.nan))


def test_arguments_keep_their_layout():
    whole = torch.arange(24.0).reshape(4, 6)
    for x in (whole[:, 1:4], whole.T, whole[::2], whole[1:2], torch.tensor(1.0).expand(3, 5)):
        y = round_trip(x, strides=True)
        assert (y.shape, y.stride(), y.storage_offset()) == (x.shape, x.stride(), x.storage_offset())
        assert torch.equal(x, y)
        assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes()
    assert round_trip(torch.ones(2, requires_grad=True), strides=True).requires_grad
    with pytest.raises(wire.ProtocolError, match="no tensor that may come here"):
        round_trip(whole[:, 1:4])


def test_tensors_that_arrive_can_be_written_to():
    x = round_trip(torch.ones(3))
    assert x.add_(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "value",
    [object(), torch.nn.Parameter(torch.ones(1)), 2**600, {1, 2}, b"bytes", 1j, type("Sub", (int,), {})(3)],
    ids=lambda value: type(value).__name__,
)
def test_data_that_is_not_plain_is_not_sent(value):
    with pytest.raises(wire.ProtocolError):
        wire.pack(value)


def test_a_value_beyond_the_size_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(wire, "PAYLOAD_LIMIT", 1000)
    with pytest.raises(wire.ProtocolError, match="too much to send"):
        wire.pack(torch.zeros(1000))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(wire.ProtocolError, match="nested more than"):
        wire.pack(deep)


# Nonsense

HEADERS = [
    "",
    "nonsense",
    "NaN",
    "1.5",
    "[" * 100_000,
    "[1]",
    "1" + "0" * 4000,
    '{"pickle": "gASV"}',
    '{"float": "nonsense"}',
    '{"float": 1}',
    '{"float": "0x1p+99999999999"}',
    '{"tuple": 3}',
    '{"tuple": [], "list": []}',
    '{"dict": [[1]]}',
    '{"dict": [[1, 2], [1, 3]]}',
    '{"dict": [[{"list": []}, 2]]}',
    '{"tensor": []}',
    '{"tensor": ["float32"]}',
    '{"tensor": ["object", [1]]}',
    '{"tensor": [["float32"], [1]]}',
    '{"tensor": ["float32", 3]}',
    '{"tensor": ["float32", [-1]]}',
    '{"tensor": ["float32", [true]]}',
    '{"tensor": ["float32", [1.0]]}',
    '{"tensor": ["float32", [1000000000000]]}',
    '{"tensor": ["float32", [0, 1000000000000]]}',
    '{"tensor": ["float32", [65536, 65536]]}',
    '{"tensor": ["float32", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]}',  # noqa: E501
    '{"tensor": ["float32", [2]]}',  # of 8 bytes, where there are 4
    '{"tensor": ["uint8", [3]]}',  # of 3 bytes: one is left
    '{"tensor": ["bool", [4]]}',  # whose bytes are not bools
    '{"tensor": ["float32", [1], [1], 0, 1, false]}',  # with strides
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:40])
def test_nonsense_in_a_header_is_refused(header):
    with pytest.raises(wire.ProtocolError) as refused:
        wire.unpack(header.encode(), b"\x02\x00\x00\x03")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "layout",
    [
        ([4], [1], 0, 3, False),
        ([4], [1], 1, 4, False),
        ([2, 2], [3, 1], 0, 4, False),
        ([2], [1, 1], 0, 4, False),
        ([2], [-1], 1, 4, False),
        ([2], [1], 0, 5, False),
        ([2], [1], 0, 4, 1),
    ],
)
def test_a_layout_stays_within_its_memory(layout):
    header = json.dumps({"tensor": ["uint8", *layout]}).encode()
    with pytest.raises(wire.ProtocolError):
        wire.unpack(header, b"abcd", strides=True)


def test_a_lone_surrogate_does_not_reach_whoever_prints_it():
    assert wire.unpack(b'"\\ud800"', b"") == "?"


@given(st.binary(min_size=1, max_size=60))
def test_random_bytes_are_refused_or_wait_for_more(data):
    frames = wire.Frames()
    try:
        found = list(frames.feed(data))
    except wire.ProtocolError:
        assert not data.startswith(wire.MAGIC) or len(data) >= 16
    else:
        assert not found and wire.MAGIC.startswith(data[:4])


@given(st.data())
def test_a_frame_with_one_byte_changed_is_another_value_or_refused(data):
    frame = bytearray(wire.pack((torch.arange(3), {"a": 1.5})))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        for header, payload in wire.Frames().feed(bytes(frame)):
            wire.unpack(header, payload)
    except wire.ProtocolError:
        pass


@pytest.mark.parametrize(("header", "payload"), [(wire.HEADER_LIMIT + 1, 0), (2, wire.PAYLOAD_LIMIT + 1), (2, 2**63)])
def test_too_long_a_frame_is_refused_before_it_arrives(header, payload):
    with pytest.raises(wire.ProtocolError, match="too large"):
        list(wire.Frames().feed(struct.pack("<4sIQ", wire.MAGIC, header, payload)))


def test_frames_through_a_pipe_in_order_until_it_is_closed():
    receive, send = os.pipe()
    for value in (1, "two", (torch.arange(3),)):
        wire.write(send, value)
    os.close(send)
    one, two, (three,) = wire.read(receive)
    os.close(receive)
    assert (one, two, three.tolist()) == (1, "two", [0, 1, 2])
