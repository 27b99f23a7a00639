"""What goes into a frame comes out of it."""

import msgspec
import pytest

from services.common.contracts import frames
from services.common.contracts.charging import Counted, CountText, InputFacts, Open, Refused
from services.common.ids import EdgeId, KeyHash, new_session_id


def test_calls_and_replies_survive_a_frame() -> None:
    call = Open(
        session_id=new_session_id(),
        seq=1,
        edge_id=EdgeId("edge-1"),
        key_hash=KeyHash("0" * 64),
        endpoint="chat",
        model="gpt-4o",
        stream=True,
        facts=InputFacts(body_bytes=10, message_count=1),
        body=b'{"model":"\xe4\xbd\xa0"}',
    )
    text = CountText(model="m", texts=("\u4f60\u597d", ""), final=False)
    assert frames.decode_calls(frames.encode_frame([(1, call), (2, text)])) == [(1, call), (2, text)]
    replies = [
        (1, Refused(error="InvalidApiKey", code="invalid_api_key", message="no")),
        (2, Counted(tokens=(1,))),
    ]
    assert frames.decode_replies(frames.encode_frame(replies)) == replies


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x93\x01\x02\x03"])
def test_garbage_is_refused(frame: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        frames.decode_calls(frame)
