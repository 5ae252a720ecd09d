"""Where simplejpeg is missing, Pillow decodes, and says so once."""

import io
import subprocess
import sys

import numpy as np
from PIL import Image

from facescale.data.images import decode, has_image_header

SCRIPT = """
import logging, sys
sys.modules["simplejpeg"] = None  # an import of it raises ImportError
logging.basicConfig(format="%(levelname)s %(message)s")
import facescale, facescale.head, facescale.backbones, facescale.data.loader
from facescale.data.images import decode, has_image_header
jpeg = sys.stdin.buffer.read()
for _ in range(3):
    pixels = decode(jpeg)
try:
    decode(jpeg[:200])
except ValueError as error:
    print(error, file=sys.stderr)
assert has_image_header(jpeg) and not has_image_header(b"text")
sys.stdout.buffer.write(pixels.tobytes())
"""


def test_pillow_decodes_and_says_so_once() -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers).resize((112, 112)).save(file, "JPEG", quality=90)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=file.getvalue(), capture_output=True, check=True
    )
    pixels = np.frombuffer(done.stdout, np.uint8).reshape(112, 112, 3)
    # Both decode with libjpeg-turbo; versions may round colours in other ways.
    difference = np.abs(pixels.astype(int) - decode(file.getvalue())).max()
    assert difference <= 2
    said = done.stderr.decode().splitlines()
    assert len(said) == 2, said
    assert said[0].startswith("WARNING Pillow decodes the images; simplejpeg is faster")
    assert said[1].startswith("not a readable image:")
    assert has_image_header(file.getvalue())
