"""Changes the files that readers open at random, and counts what should not happen.

    python tests/fuzz.py --inputs 100000 --seed 0

Every input may be read, or refused with one line. Counted are crashes (another exception, or the
end of the process), hangs (5 s), memory (1 GiB), and execution (a program, a module, a pickle).
Inputs are functions of (seed, reader, number), so each one can be had again: `--only bin:1234`.
"""

import argparse
import gc
import io
import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from confined import limit_memory
from facescale.data import indexcache, sampletable, sidecars
from facescale.data.dataset import found_in, open_dataset
from facescale.data.images import decode, has_image_header
from facescale.data.pairs import load_pairs
from facescale.data.recordfile import write_record
from facescale.datasets.parts import OFRecordWriter, TarWriter
from facescale.datasets.recordio import write_recordio

HANG_S = 5.0
MEMORY = 2**30
EXECUTION = {
    *("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"),
}
_TOKENS = [
    *(b"\n", b"\t", b"-1", b"9" * 30, b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff"),
    *(
        b"\x0a\x23\xd7\xce",
        b"\xff\xda",
        b"\xff\xc2",
        b"Exif\0\0MM\0*",
        b"(",
        b".",
        b"R",
        b"b",
        b"0",
    ),
    *(b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"cbuiltins\neval\n", b"nan", b"II*\0"),
]


def mutate(data: bytes, random: random.Random) -> bytes:
    """One to eight changes: bits, numbers, tokens, cuts, repeats, moves."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        place = random.randrange(len(result) + 1)
        span = random.choice((1, 2, 4, 8, random.randrange(1, 64)))
        match random.randrange(8):
            case 0 if place < len(result):
                result[place] ^= 1 << random.randrange(8)
            case 1:
                result[place : place + 1] = bytes([random.randrange(256)])
            case 2:
                number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, len(data), 2**24))
                wide = random.choice((1, 2, 4, 8))
                order = random.choice(("little", "big"))
                number &= (1 << 8 * wide) - 1
                result[place : place + wide] = number.to_bytes(wide, order)  # type: ignore[arg-type]
            case 3:
                result[place:place] = random.choice(_TOKENS)
            case 4:
                del result[place:]
            case 5:
                del result[place : place + span]
            case 6:
                result[place:place] = result[place : place + span] * random.choice((1, 2, 1000))
            case _:
                start = random.randrange(len(result) + 1)
                result[place : place + span] = result[start : start + span]
    return bytes(result)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    ramp = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
    file = io.BytesIO()
    Image.fromarray(ramp).convert(mode).save(file, kind, **options)
    return file.getvalue()


def seeds() -> dict[str, list[bytes]]:
    """Good files of every reader."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        *(encoded("JPEG"), encoded("JPEG", progressive=True), encoded("JPEG", exif=exif)),
        *(encoded("JPEG", "CMYK"), encoded("JPEG", "L"), encoded("PNG"), encoded("PNG", "P")),
        *(encoded("PNG", "RGBA", exif=exif), encoded("PNG", "I;16"), encoded("BMP")),
        *(encoded("WEBP"), encoded("WEBP", lossless=True), encoded("TIFF"), encoded("PPM")),
        *(encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="tiff_deflate")),
        *(encoded("TIFF", "I;16"), encoded("TIFF", "F"), encoded("TIFF", "1"), encoded("PPM", "L")),
    ]
    arrays = [np.frombuffer(image, np.uint8) for image in images[:4]]
    flags: list[Any] = [[True, False], [np.True_, np.False_], np.array([True, False])]
    sets = [
        pickle.dumps((content, flag), protocol)
        for protocol in range(6)
        for content in (images[:4], arrays)
        for flag in flags
    ]
    return {"images": images, "bin": sets, "property": [b"3,112,112\n", b"\xef\xbb\xbf3,1,1"]}


def write_set(folder: Path, random: random.Random) -> None:
    """A small set in one of both layouts."""
    if random.random() < 0.7:
        samples = [(encoded("JPEG"), label) for label in (0, 0, 2, 2)]
        write_recordio(folder, samples, 3)
        return
    lines = []
    with (folder / "train.rec").open("wb") as file:
        for key, label in enumerate((3, 1, 4)):
            lines.append(f"{key}\t{file.tell()}\n")
            write_record(file, struct.pack("<IfQQ", 0, label, key, 0) + encoded("PNG"))
    (folder / "train.idx").write_text("".join(lines))


def read_set(path: Path) -> None:
    """Open a data set and read all of it, as a run would."""
    dataset = open_dataset(path)
    str(found_in(dataset))
    for index in range(min(len(dataset), 100)):
        dataset.describe(index).encode()
        try:
            decode(dataset.read(index).encoded)
        except (ValueError, OSError) as error:
            check_message(error)


def fuzz_images(folder: Path, random: random.Random) -> None:
    data = mutate(random.choice(SEEDS["images"]), random)
    if has_image_header(data):
        decode(data)


def fuzz_bin(folder: Path, random: random.Random) -> None:
    path = folder / "pairs.bin"
    path.write_bytes(mutate(random.choice(SEEDS["bin"]), random))
    pairs = load_pairs(path)
    pairs.distinct()
    pairs.decode(range(min(8, len(pairs.images))))


def fuzz_file_of_a_set(folder: Path, random: random.Random, name: str) -> None:
    write_set(folder, random)
    path = folder / name
    good = path.read_bytes() if path.exists() else random.choice(SEEDS["property"])
    path.write_bytes(mutate(good, random))
    if random.random() < 0.2:
        (folder / "train.idx").unlink(missing_ok=True)
    read_set(folder)


def fuzz_cache(folder: Path, random: random.Random) -> None:
    """Half of the caches have digests that fit what was changed."""
    before, indexcache.WORTH_KEEPING = indexcache.WORTH_KEEPING, 1
    try:
        write_set(folder, random)
        open_dataset(folder)
        path = folder / "train.idx.cache"
        whole = path.read_bytes()
        start = indexcache._START
        changed = bytearray(mutate(whole, random))
        if random.random() < 0.5:
            sizes, body = whole[start - 32 : start], whole[start:]
            sizes, body = random.choice(
                [(mutate(sizes, random), body), (sizes, mutate(body, random))]
            )
            proof = indexcache._digest(sizes[:32] + indexcache._sample(memoryview(body)))
            changed = bytearray(whole[:24] + proof + sizes[:32] + body)
        path.write_bytes(changed)
        read_set(folder)
    finally:
        indexcache.WORTH_KEEPING = before


def fuzz_folder(folder: Path, random: random.Random) -> None:
    """A tree of odd names, links and files."""
    names = [
        b"a",
        b"b.jpg",
        b".c",
        b"\xff",
        b"[d]",
        b"0",
        b"0_1",
        b"e.PNG",
        b"\xe2\x80\xae",
        b"x" * 200,
    ]
    root = os.fsencode(folder) + b"/set"
    os.mkdir(root)
    places = [root]
    for _ in range(random.randrange(1, 12)):
        path = random.choice(places) + b"/" + random.choice(names)
        if os.path.lexists(path):
            continue
        match random.randrange(10):
            case 0 | 1 | 2 | 3:
                os.mkdir(path)
                places.append(path)
            case 4 | 5 | 6 | 7 | 8:
                with open(path, "wb") as file:
                    file.write(random.choice(SEEDS["images"]))
            case _:
                os.symlink(random.choice([b"nowhere", b".", b"..", path, root]), path)
    read_set(folder / "set")


def write_parts(folder: Path, kind: str) -> None:
    """A small set in two parts or shards, with names."""
    writer = (OFRecordWriter if kind == "ofrecord" else TarWriter)(folder, {}, 2)
    for label in (0, 0, 2):
        writer.add(encoded("JPEG"), label)
    writer.finish()
    (folder / "names.txt").write_text("ann\nbob\ncid\n")


def fuzz_parts(folder: Path, random: random.Random, kind: str) -> None:
    write_parts(folder, kind)
    path = random.choice(sorted(folder.iterdir()))
    path.write_bytes(mutate(path.read_bytes(), random))
    read_set(folder)


def fuzz_table(folder: Path, random: random.Random) -> None:
    """The table of samples; half of the changed ones have a digest that fits."""
    before, sampletable.WORTH_KEEPING = sampletable.WORTH_KEEPING, 1
    try:
        write_parts(folder, random.choice(("ofrecord", "tar")))
        open_dataset(folder)
        path = folder / sampletable.NAME
        whole, start = path.read_bytes(), sampletable._HEADER.size
        changed = mutate(whole, random)
        if random.random() < 0.5:
            body = mutate(whole[start:], random)
            count = len(body) // sampletable.ROW.itemsize
            body = body[: count * sampletable.ROW.itemsize]
            proof = sampletable._digest(body)
            changed = whole[:24] + proof + struct.pack("<Q", count) + body
        path.write_bytes(changed)
        read_set(folder)
    finally:
        sampletable.WORTH_KEEPING = before


def fuzz_list(folder: Path, random: random.Random) -> None:
    (folder / "a.jpg").write_bytes(encoded("JPEG"))
    name, text = random.choice(
        [
            ("a.csv", b'path,label\na.jpg,0\n"a.jpg",1\n'),
            ("b.lst", b"1\ta.jpg\t0\n1\ta.jpg\t1\n"),
            ("c.lst", b"0\t0.000\ta.jpg\n1\t1.000\ta.jpg\n"),
            ("d.txt", b"a.jpg ann\na.jpg bob\n"),
        ]
    )
    (folder / name).write_bytes(mutate(text, random))
    read_set(folder / name)


def fuzz_labels(folder: Path, random: random.Random) -> None:
    """The exact labels beside RecordIO."""
    write_recordio(folder, [(encoded("JPEG"), label) for label in (0, 0, 2)], 3)
    path = folder / "train.labels"
    sidecars.write_labels(path, np.array([0, 0, 2], np.uint32))
    path.write_bytes(mutate(path.read_bytes(), random))
    read_set(folder)


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "bin": fuzz_bin,
    "images": fuzz_images,
    "rec": lambda folder, random: fuzz_file_of_a_set(folder, random, "train.rec"),
    "idx": lambda folder, random: fuzz_file_of_a_set(folder, random, "train.idx"),
    "property": lambda folder, random: fuzz_file_of_a_set(folder, random, "property"),
    "cache": fuzz_cache,
    "folder": fuzz_folder,
    "ofrecord": lambda folder, random: fuzz_parts(folder, random, "ofrecord"),
    "tar": lambda folder, random: fuzz_parts(folder, random, "tar"),
    "table": fuzz_table,
    "list": fuzz_list,
    "labels": fuzz_labels,
}
SHARES = {"bin": 0.4, "images": 0.25, "rec": 0.12, "idx": 0.08, "cache": 0.08, "folder": 0.04}
SEEDS = seeds()


def check_message(error: Exception) -> None:
    text = str(error)
    assert "\n" not in text, f"more than one line: {text[:300]!r}"
    assert 0 < len(text) < 1500, f"{len(text)} characters: {text[:300]!r}"
    text.encode()


def one(reader: str, seed: int, number: int, folder: Path) -> str:
    """Whether the input of that number was "read" or "refused"; raises what should not happen."""
    return one_of(reader, random.Random(f"{seed} {reader} {number}"), folder)


def one_of(reader: str, source: random.Random, folder: Path) -> str:
    """The same of an input that any source of numbers decides."""
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        READERS[reader](work, source)
    except (ValueError, OSError) as error:
        check_message(error)
        return "refused"
    finally:
        shutil.rmtree(work)
    return "read"


def child(reader: str, seed: int, numbers: range, folder: Path, answers: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    os.environ["XDG_CACHE_HOME"] = str(folder)
    warm_up(folder)
    gc.collect()  # what the parent's garbage holds would be room beyond the limit
    limit_memory(MEMORY)
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EXECUTION:
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    for number in numbers:
        answers.send(number)
        try:
            answer = one(reader, seed, number, folder)
        except BaseException as error:
            answer = f"crash: {type(error).__name__}: {error}"[:300]
        if events:
            answer = f"execution: {events[0]}"
            events.clear()
        answers.send(answer)
    answers.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def warm_up(folder: Path) -> None:
    """Import what Pillow imports late, so that later imports are of the input's doing."""
    for image in SEEDS["images"]:
        with_header = has_image_header(image)
        assert with_header
        try:
            decode(image)
        except ValueError:
            assert image == encoded("TIFF", "F")
    for reader in READERS:
        for number in range(20):
            one(reader, -1, number, folder)


def fuzz(
    reader: str, seed: int, numbers: range, folder: Path
) -> tuple[Counter[str], list[str], int]:
    """The tally of one reader, the faults, and the peak of memory in KiB."""
    tally: Counter[str] = Counter()
    faults: list[str] = []
    peak = 0
    context = multiprocessing.get_context("fork")
    while numbers:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(reader, seed, numbers, folder, theirs))
        process.start()
        theirs.close()
        current, fault = -1, ""
        try:
            while ours.poll(HANG_S if current >= 0 else 60):
                said = ours.recv()
                if isinstance(said, str):
                    kind = said.split(":")[0]
                    tally[kind] += 1
                    if kind not in ("read", "refused"):
                        faults.append(f"{reader}:{current} {said}")
                elif said == numbers.stop or current == numbers.stop - 1:
                    peak = max(peak, said)
                else:
                    current = said
            fault = "hang"
        except EOFError:
            process.join(10)
            fault = f"died: exit code {process.exitcode}" if process.exitcode else ""
        process.kill()
        process.join()
        if not fault:
            break
        tally[fault.split(":")[0]] += 1
        faults.append(f"{reader}:{current} {fault}")
        numbers = range(max(current + 1, numbers.start + 1), numbers.stop)
    return tally, faults, peak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one input, as a fault names it: bin:1234")
    parser.add_argument("--list", action="store_true", help="name the readers")
    options = parser.parse_args(arguments)
    if options.list:
        print(*READERS)
        return 0
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        if options.only:
            reader, number = options.only.split(":")
            print(one(reader, options.seed, int(number), Path(folder)))
            return 0
        for reader in READERS:
            count = round(options.inputs * SHARES.get(reader, 0.03))
            began = time.monotonic()
            tally, found, peak = fuzz(reader, options.seed, range(count), Path(folder))
            faults += found
            seconds = time.monotonic() - began
            kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(tally.items()))
            print(
                f"{reader:10}{count:8} inputs  {seconds:6.0f} s  {peak >> 10} MiB  {kinds}",
                flush=True,
            )
    print(*faults, f"{len(faults)} faults", sep="\n")
    return bool(faults)


def _memory() -> str | None:
    """A file system in memory, which a hundred thousand small files need."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())
