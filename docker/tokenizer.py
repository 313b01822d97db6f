"""Makes the GPT-2 tokenizer without a model hub: `python docker/tokenizer.py DIR` writes DIR/tokenizer.json.

The ranks of GPT-2's byte-level BPE ship inside the source package of openai-whisper. pip fetches that package by its
locked SHA-256. This script extracts and verifies the one file, and computes the merges from the ranks. The result has
the same bytes every time. Needs pip, setuptools and tokenizers (in .venv or in the trainer's environment).
"""

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

LOCK = Path(__file__).parent / "requirements" / "tokenizer.lock"
RANKS_MEMBER = "whisper/assets/gpt2.tiktoken"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 50_257
LICENCE_NOTE = """\
tokenizer.json holds the vocabulary and the merges of the GPT-2 tokenizer, made by OpenAI.
They were taken from the source package {package}, whose licence follows.

"""


def fetch_package(folder: Path) -> Path:
    """Downloads the locked source package into `folder`, and returns its path. pip checks the hash."""
    # Without build isolation nothing else is fetched. pip only reads the package's metadata through setuptools.
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)]
    subprocess.run([*command, "--dest", str(folder)], check=True, stdin=subprocess.DEVNULL)
    (package,) = folder.glob("*.tar.gz")
    return package


def read_member(package: Path, suffix: str) -> bytes:
    """Returns the one file of the package whose path ends in `suffix`, below the package's own top folder."""
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and member.name.partition("/")[2] == suffix:
                content = archive.extractfile(member)
                assert content is not None
                return content.read()
    raise SystemExit(f"tokenizer: {package.name} holds no {suffix}")


def read_ranks(text: bytes) -> dict[bytes, int]:
    """Returns {token bytes: rank}. Every line is a base64 token and its rank, which is also its id."""
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in text.splitlines())}


def printable_bytes() -> dict[int, str]:
    """Returns GPT-2's printable stand-in for every byte: itself if it is visible, else a letter from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [value for value in range(256) if value not in visible]
    return {value: chr(value) for value in visible} | {value: chr(256 + n) for n, value in enumerate(hidden)}


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Returns the pair that `token` is merged from: the result of BPE on its bytes with only the earlier merges."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        # The pair of lowest rank is merged first, exactly as when text is encoded.
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        first = pairs.index(min(pairs))
        assert pairs[first] < ranks[token]
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def build(ranks: dict[bytes, int]) -> Tokenizer:
    """Returns the fast tokenizer: byte-level BPE, no space added in front, and the end-of-text token as the last id."""
    letters = printable_bytes()

    def text(token: bytes) -> str:
        return "".join(letters[value] for value in token)

    vocabulary = {text(token): rank for token, rank in ranks.items()}
    by_rank = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [(text(left), text(right)) for left, right in (merge_of(token, ranks) for token in by_rank)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def check(tokenizer: Tokenizer) -> None:
    """Ends the program if the tokenizer is not GPT-2's."""
    sample = "Hello world"
    text = "Grün, 東京 and 🙂:\n\n  it's 42\t!" + END_OF_TEXT
    facts = {
        "vocabulary size": (tokenizer.get_vocab_size(), VOCABULARY_SIZE),
        f"id of {END_OF_TEXT}": (tokenizer.token_to_id(END_OF_TEXT), VOCABULARY_SIZE - 1),
        f"ids of {sample!r}": (tokenizer.encode(sample).ids, [15496, 995]),
        "text after a round trip": (tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False), text),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            raise SystemExit(f"tokenizer: {name} is {found}, not {expected}")


def main() -> None:
    """Fetches, verifies, converts and writes tokenizer.json and its licence."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docker/tokenizer.py DIR")
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        package = fetch_package(Path(folder))
        ranks = read_member(package, RANKS_MEMBER)
        licence = LICENCE_NOTE.format(package=package.name).encode() + read_member(package, "LICENSE")
    digest = hashlib.sha256(ranks).hexdigest()
    if digest != RANKS_SHA256:
        raise SystemExit(f"tokenizer: {RANKS_MEMBER} has SHA-256 {digest}, not {RANKS_SHA256}")
    tokenizer = build(read_ranks(ranks))
    check(tokenizer)
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.LICENSE").write_bytes(licence)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    digest = hashlib.sha256((target / "tokenizer.json").read_bytes()).hexdigest()
    print(f"tokenizer: wrote {target / 'tokenizer.json'}, SHA-256 {digest}")


if __name__ == "__main__":
    main()
