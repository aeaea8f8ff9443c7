"""Every bound in one place, each with its reason.

A bound here is a promise about memory, time or names; what a user may tune is in `settings`.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# ── Input ────────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_LINE_BYTES: Final = 64 * MIB
"""A longer input line is a rejected record. The API takes 50 MB of image payload a request; base64 adds a third."""
MAX_CUSTOM_ID_CHARS: Final = 512
"""A longer custom_id is a rejected record: ids are copied into every delta line."""
MAX_JSON_DEPTH: Final = 200
"""A deeper line is a rejected record. orjson reads 1,024 levels but writes 254 at most, and a body or its metadata is
written some levels deep in a request or a record; tool schemas in the wild stay below 40."""
MAX_JSON_VALUES: Final = 2_000_000
"""A line with more values is a rejected record: 64 MiB of `[],` would become 1.5 GB of lists. The longest context
windows take a million tokens."""
READ_BLOCK_BYTES: Final = 256 * KIB
"""One read of the jobs file."""
SOURCE_BATCH_JOBS: Final = 1024
"""Jobs parsed in one visit to the reader thread: a loop with thousands of streams makes one or two a second."""
SOURCE_BATCH_BYTES: Final = 1 * MIB
"""…or this many bytes of lines, whichever comes first, so that large lines don't pile up."""

# ── Server ───────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_SSE_LINE_BYTES: Final = 16 * MIB
"""One line of an event stream. A Responses terminal event repeats the whole answer: 128 k tokens are about 1 MiB,
base64 images of the image tool some MiB. A 200 MB line took a plain client from 73 to 837 MB."""
MAX_STREAM_BYTES: Final = 512 * MIB
"""One streamed body. An endless stream ends here at the latest: 10 million chunks of 50 bytes."""
MAX_BODY_BYTES: Final = 64 * MIB
"""One body that isn't streamed (embeddings of 2,048 inputs × 3,072 dimensions are 80 MB as text; users batch less)."""
MAX_ERROR_BODY_BYTES: Final = 64 * KIB
"""What is read of an error answer."""
ERROR_BODY_TIMEOUT_S: Final = 5.0
"""…and how long to wait for it: the status has said the most of it."""
MAX_ERROR_TEXT_CHARS: Final = 2_000
"""What is kept of a server's error message in a record."""
MAX_CHOICES: Final = 128
"""Choices of one answer: the API's own bound on n."""
MAX_TOOL_CALLS: Final = 1_024
"""Tool calls of one choice; an index beyond is a malformed chunk, not an allocation."""
MAX_OUTPUT_ITEMS: Final = 4_096
"""Output items, and parts of one item, of a Responses answer."""
MAX_RETRY_AFTER_S: Final = 3_600.0
"""A longer Retry-After is no advice: 1e9, inf and dates of the far future are broken headers, and a run that believed
them would sleep for years. The longest that the API sends for a limit it enforces is minutes."""
MAX_RESET_S: Final = 86_400.0
"""A longer reset of a rate limit is unknown: the longest window the API has is a day."""
MAX_HEADER_LIMIT: Final = 1e12
"""A larger limit in a header is none."""
CONNECT_TIMEOUT_S: Final = 15.0
"""TCP and TLS handshake."""
SOCKET_BLOCK_BYTES: Final = 64 * KIB
"""What a transport reads ahead of an attempt that waits, about twice this: at 256 KiB 32 streams held 13 MB more, for
nothing: 64 KiB hold a thousand chunks."""
GATHER_S: Final = 0.2
"""Blocks of a steady stream are taken together when the first of them is so old…"""
GATHER_BYTES: Final = 16 * KIB
"""…or when they are so large."""
GATHERED_PER_S: Final = 1_250
"""Where so many streams are open that this might be done more often, they gather for longer…"""
MAX_GATHER_S: Final = 1.0
"""…up to this."""
KEEPALIVE_S: Final = 60.0
"""Idle connections are kept this long: a paced run must not re-handshake TLS for every request (the SDK keeps 5 s)."""
DRAIN_TIMEOUT_S: Final = 0.25
"""How long to wait for the end of a body after its terminal event, so that the connection can be used again."""

# ── Scheduling ───────────────────────────────────────────────────────────────────────────────────────────────────
MAX_CONCURRENCY: Final = 20_000
"""Streams in one process: each takes a socket, and an ephemeral port to one address."""
AUTO_CONCURRENCY_START: Final = 8
"""Where `--concurrency auto` begins."""
AUTO_CONCURRENCY_MAX: Final = 4_096
"""Where `--concurrency auto` stops growing: 30,000 answers a minute that last 8 s each. A stream takes some 50 KiB."""
CHUNKS_AT_ONCE: Final = 8
"""Throughput is measured by chunks: to count every one by itself would cost more than to read its text."""
MAX_LANES: Final = 256
"""Models with a queue and limits of their own; a file that names more shares the first one's."""
BACKOFF_ROOM: Final = 2
"""Jobs in memory per concurrency slot: one running, the others waiting out a backoff without a slot."""
MAX_WAITING_JOBS: Final = 4_096
"""Jobs in memory, whatever the concurrency, while one model's wait for its limits and another's might go…"""
MAX_WAITING_BYTES: Final = 64 * MIB
"""…and the most that their lines may be long together."""
THROTTLED_ATTEMPTS_FACTOR: Final = 10
"""A 429 costs the server nothing and says when to come back, so a job may meet this many times more of them than
of other faults before it is given up."""
BURST_S: Final = 0.5
"""The buckets hold half a second's worth of the allowance: with the other half of a second left to network jitter,
a server that allows one second's worth never sees us above it."""

# ── Output ───────────────────────────────────────────────────────────────────────────────────────────────────────
DELTA_FLUSH_S: Final = 0.1
"""Deltas reach the file at most this long after they went on."""
MAX_PENDING_OUTPUT_BYTES: Final = 2 * MIB
"""When this much waits for the disk, and PENDING_BYTES_PER_STREAM a slot, attempts stop reading their sockets."""
PENDING_BYTES_PER_STREAM: Final = 4 * KIB
"""A few seconds of deltas. With 2 MiB for all of them 5,000 streams stopped each other again and again: to wake so many
takes longer than to fill that."""
USUAL_STREAMS: Final = 1_024
"""Slots for which there is room where their number isn't given."""
MAX_RECORD_GROUP: Final = 512
"""Records in one fsync."""

# ── Chunks ───────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_CHUNK_DEPTH: Final = 200
"""A deeper chunk or answer is malformed. orjson writes 254 levels at most, and a record wraps an answer in a few."""
MAX_COUNTED_TOKENS: Final = 1_000_000_000
"""A larger count in `usage` is a broken counter, taken as unknown: no context window is within a thousandth of it,
and the limiter would pay for it for hours."""
MAX_ANSWER_TOKENS: Final = 384 * 1024
"""The longest answer that the API gives, where a job names no maximum of its own."""
BYTES_PER_TOKEN: Final = 16
"""Of an answer's text as UTF-8. English has 4 to 5, scripts of India and Georgia up to 10; an answer is no bound's
business before it has three times what it should have."""
BYTES_PER_LOGPROB: Final = 128
"""One token's log probability or one alternative, as JSON: 58 for an English one, its bytes as numbers included."""
BYTES_PER_VECTOR: Final = 128 * KIB
"""An embedding of 4,096 dimensions with 20 digits each is 90 KiB."""
ANSWER_SLACK_BYTES: Final = 1 * MIB
"""What any answer may have beyond its tokens: fields of the server's own, and reasoning, which some servers don't count
as output (32 k tokens)."""
ANSWER_SHARE_TOKENS: Final = 32 * 1024
"""Of an answer, what always has room: at 16 bytes a token 512 KiB, about 110,000 tokens of English. 32 endless streams
of jobs that name no maximum hold 16 MiB."""
MIN_ROOM_BYTES: Final = 12 * MIB
"""What a process's answers may hold together, however few they are."""
READING_ROOM_BYTES: Final = 20 * MIB
"""…and the lines and bodies that are being read: one line of the longest, and room for others."""
MAX_MEDIA_BYTES: Final = 64 * MIB
"""Images, sound and findings of hosted tools in one answer: 16 k tokens of sound are 820 s, 52 MB as base64."""
MEDIA_SHARE_BYTES: Final = 4 * MIB
"""…and what always has room of them: an image as base64."""
MAX_PARTIAL_BYTES: Final = 64 * KIB
"""What a record keeps of an answer that was too large, about."""
SLICE_BYTES: Final = 64 * KIB
"""Of one read, what is taken before it is asked whether the disk keeps up: a read may bring 512 KiB."""
LARGE_EVENT_BYTES: Final = 64 * KIB
"""A larger event has its values counted before it is parsed."""
BYTES_PER_VALUE: Final = 64
"""What a parsed value takes: an empty list, which is 3 bytes of JSON, 64; an object with one key 248."""
MIN_PARSED_BYTES: Final = 16 * MIB
"""What the values of one event may take while it is looked at, however little was asked for: 262,144 values."""

# ── Simulator ────────────────────────────────────────────────────────────────────────────────────────────────────
SIMULATOR_LOG_ENTRIES: Final = 100_000
"""Requests that the simulator's /stats remembers one by one; `--log FILE` keeps them all."""
SIMULATOR_KEYS: Final = 200_000
"""Prompts whose requests the simulator counts apart, the oldest forgotten first: about 30 MB."""
SIMULATOR_BODY_BYTES: Final = MAX_LINE_BYTES + 16 * MIB
"""Largest request the simulator reads: no line that the runner takes may be too long for it."""
SIMULATOR_STALL_S: Final = 3_600.0
"""A stalled scenario gives up after this long: beyond every timeout a client may be tested with."""
SIMULATOR_TOKENS: Final = 1_000_000
"""Longest answer the simulator composes: its tokens are held as a list."""
SIMULATOR_CHOICES: Final = 1_024
"""Choices of one simulated answer over all prompts of a legacy completion; the API's own bound on n is 128."""
SIMULATOR_WRITE_BYTES: Final = 64 * KIB
"""When this much waits for a slow reader the simulator stops writing: asyncio's own high-water mark."""

# ── Text that is shown or logged ─────────────────────────────────────────────────────────────────────────────────
MAX_ECHO_CHARS: Final = 1_000_000
"""Of whole answers that wait for a slow one to be echoed."""
MAX_REDACTED_DEPTH: Final = 512
"""Deeper values are cut when secrets are looked for: twice what orjson writes."""
MAX_REDACTED_VALUES: Final = 10_000_000
"""…and so are larger ones. The widest answer, 128 k tokens with 20 alternatives each, has about that many values."""
MAX_COUNTED_NAMES: Final = 200
"""Error codes, finish reasons or retry reasons that are counted apart; a server that invents more fills no memory."""
