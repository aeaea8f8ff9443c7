"""Synthetic prompts: plain words, of the lengths that were asked for, with a share that all requests begin with.

The rule of lengths: every word has three letters, so that with its space it is four ASCII characters, which is one
token by this project's estimate (tokens.heuristic) and, since the words are common ones, by the usual tokenizers too.
A prompt of N tokens has N − 7 words: 4 and 3 are what the estimate counts for a message and for the answer's start.
The estimate of the request is N exactly, for any N above 7; below, it is one word.

The shared part comes first and is the beginning of one endless text, so that requests of different lengths share as
much as the shorter one has. Behind it every request goes its own way from its first word on, by seed, salt and its
number: of two requests' first blocks of 16 tokens not one pair in 2¹²⁸ is equal, hence a prefix cache hits what is
shared and nothing else. The salt is a run's own (a server may remember the run before); lengths don't depend on it.

The length of the answer is asked for by `OutputLength`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from runner.jobs import Job
from runner.load.draws import Constant, Draw, noise, uniforms
from runner.load.prompts import CAPPED, OutputLength, chat_job
from runner.tokens import MESSAGE_TOKENS, PRIMING_TOKENS

OVERHEAD_TOKENS: Final = MESSAGE_TOKENS + PRIMING_TOKENS
MAX_TOKENS: Final = 4_000_000
"""Longest input or output that may be asked for: 16 MB of text."""
_LISTED: Final = (
    "ace act add age ago aid aim air all and ant any ape arc are ark arm art ash ask ate bad bag ban bar bat bay "
    "bed bee beg bet bid big bin bit bow box boy bud bug bus but buy cab can cap car cat cop cow cry cup cut dad "
    "dam day den did die dig dim dip dog dot dry due dug ear eat egg ego end era eve eye fan far fat fed fee few "
    "fig fin fit fix flu fly fog for fox fun fur gap gas gel get god got gum gun gut guy gym had ham has hat her "
    "hey him hip his hit hop hot how hub hug hut ice ill ink inn ion its jam jar jaw jet job joy key kid kit lab "
    "lad lap law lay leg let lid lie lip log lot low mad man map mat may men met mix mob mom mud mug net new nod "
    "nor not now nut oak odd off oil old one our out owe owl own pad pan pat pay pen pet pie pig pin pit pot put "
    "rag ran rat raw ray red rib rid rim rip rob rod row rub rug run sad sat saw say sea see set she shy sin "
    "sir sit six ski sky son spy sum sun tag tap tax tea ten the tie tin tip toe ton too top toy try two use van "
    "via war was way web wet who why win wit yes yet you zap zip zoo"
)
WORDS: Final = tuple(_LISTED.split()[:256])
"""A word for each value of a byte."""
_LETTERS: Final = tuple("".join(word[position] for word in WORDS).encode() for position in range(3))
"""The first letters of all words, the second ones, the third ones."""


def words(data: bytes) -> str:
    """A word for each byte, with spaces between."""
    # Letter by letter instead of word by word: ten times as fast, and a load generator has other things to do.
    text = bytearray(b" " * (4 * len(data)))
    for position, letters in enumerate(_LETTERS):
        text[position::4] = data.translate(letters)
    return text[:-1].decode("ascii")


@dataclass(slots=True)
class Synthetic:
    """A supply of synthetic jobs."""

    input_tokens: Draw
    output_tokens: Draw
    shared: float = 0.0
    """Share of the input tokens that all requests begin with, 0 to 1."""
    seed: int = 0
    salt: str = ""
    output: OutputLength = CAPPED
    _shared: bytes = field(default=b"", init=False)

    def job(self, k: int) -> Job:
        """Request k: the same for the same seed, salt and k."""
        n_input, n_output = self.lengths(k)
        messages = [{"role": "user", "content": self.text(k, n_input)}]
        return chat_job(f"synthetic#{k}", k, messages, self.output.keys(n_output))

    def lengths(self, k: int) -> tuple[int, int]:
        """Input and output tokens of request k."""
        u_input, u_output = uniforms(2, "lengths", self.seed, k)
        return _tokens(self.input_tokens.at(u_input, k)), _tokens(self.output_tokens.at(u_output, k))

    def text(self, k: int, tokens: int) -> str:
        """A prompt that makes a request of so many tokens."""
        n = max(1, tokens - OVERHEAD_TOKENS)
        n_shared = min(n, round(self.shared * tokens))
        own = noise(n - n_shared, "own", self.seed, self.salt, k)
        return words(self._shared_bytes(n_shared) + own)

    def _shared_bytes(self, n: int) -> bytes:
        if len(self._shared) < n:
            self._shared = noise(2 * n, "shared", self.seed, self.salt)
        return self._shared[:n]

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json."""
        text = f"synthetic: {self.input_tokens.describe()} tokens in, {self.output_tokens.describe()} out"
        if self.shared:
            text += f", {self.shared:.0%} of the input shared"
        return {
            "source": "synthetic",
            "describe": text,
            "input_tokens": self.input_tokens.describe(),
            "output_tokens": self.output_tokens.describe(),
            "shared": self.shared,
            "exact_output": self.output.exact,
            "salt": self.salt,
        }


def _tokens(value: float) -> int:
    return min(MAX_TOKENS, max(1, round(value)))


DEFAULT_INPUT: Final = Constant(512)
DEFAULT_OUTPUT: Final = Constant(128)
