"""The emulator's answers, already cut into tokens, so that counting what it sent needs no tokenizer.

Every piece of `ascii` and `emoji` is one token of both cl100k and o200k, every piece of `chinese` and
`u2028` one token of o200k; so is every piece within the joined text, for every prefix of it.
A test checks this with tiktoken. A middle dot marks a cut inside a word and is not part of the text.
"""

import re
from functools import lru_cache
from typing import Final

_ENGLISH: Final = (
    " Meter·way stands between your app and the model, and it keeps the count. Before a request leaves,"
    " a small hold is set aside from your balance, so that nothing can cost more than you have. While "
    "the answer streams, each token is counted; when it ends, the exact price is charged and the rest "
    "goes back at once.\n\n"
    "This text comes from the built in emulator, so no real model was asked and no real money was "
    "spent. You can try it as often as you like. Open the console to see this very request: its tokens,"
    " its price and what is left. If the client leaves early, only what was read is paid for. If the "
    "balance runs out, the stream ends in good order and the last line says why.\n\n"
    "To use a real model, set the address of the upstream and its key, and start again. Nothing else "
    "has to change in your code.\n\n"
)
_EMOJI: Final = (
    " Hello 😀 your request was counted 🙂 and your balance is safe ❤ so go on 😉 and ask the next thing 😀"
    " as each token is paid once 🙂 and only once 😉.\n"
)
_CHINESE: Final = (
    "预·付·费·的·网·关·会·在·每·个·请求·开始·之前·预·留·一·笔·余额·,·然后·按照·实际·使用·的·数量·收费·。·"
    "剩·余·的·部分·会·立即·返回·给·你的·账户·。·你·可以·随·时·查看·每·一个·请求·的·价格·、·数量·和·时间·。·"
    "没有·余额·的时候·,·请求·会·被·拒·绝·,·不会·产生·任何·费用·。\n"
)
_U2028: Final = (
    " The first line ends here\u2028 and the second line goes on\u2028 so a reader that splits on it"
    " breaks\u2028 but the event is whole.\n"
)
_PIECE: Final = re.compile(r" ?[A-Za-z]+|\u2028| ?[^\s\w]\n*")


def _latin(text: str) -> tuple[str, ...]:
    return tuple(piece for part in text.split("·") for piece in _PIECE.findall(part))


PIECES: Final[dict[str, tuple[str, ...]]] = {
    "ascii": _latin(_ENGLISH),
    "chinese": tuple(_CHINESE.split("·")),
    "emoji": _latin(_EMOJI),
    "u2028": _latin(_U2028),
}


def pieces_between(kind: str, first: int, end: int) -> list[str]:
    """Pieces `first` to `end - 1` of the endless text `kind`; it starts without a space and repeats."""
    pieces = PIECES[kind]
    size = len(pieces)
    found = [pieces[place % size] for place in range(first, end)]
    if found and first == 0:
        found[0] = found[0].lstrip(" ")
    return found


@lru_cache(maxsize=512)
def _short_text(kind: str, tokens: int) -> str:
    return "".join(pieces_between(kind, 0, tokens))


def text_of(kind: str, tokens: int) -> str:
    """The first `tokens` tokens of the text `kind`, joined."""
    if tokens <= 4096:
        return _short_text(kind, tokens)
    laps, rest = divmod(tokens, len(PIECES[kind]))
    whole = "".join(PIECES[kind]) * laps + "".join(PIECES[kind][:rest])
    return whole.lstrip(" ")


def tokens_for_bytes(kind: str, size_bytes: int) -> int:
    """How many tokens of the text `kind` make at least `size_bytes` bytes of UTF-8."""
    if size_bytes <= 0:
        return 0
    lap = [len(piece.encode()) for piece in PIECES[kind]]
    missing_bytes = size_bytes + len(PIECES[kind][0]) - len(PIECES[kind][0].lstrip(" "))
    laps, missing_bytes = divmod(missing_bytes, sum(lap))
    tokens = laps * len(lap)
    for piece_bytes in lap:
        if missing_bytes <= 0:
            break
        tokens += 1
        missing_bytes -= piece_bytes
    return tokens
