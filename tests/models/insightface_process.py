"""Runs in a Python that has insightface: loads a package and says what it finds on photographs.

python insightface_process.py PACKAGE OUT.npz SIZE PHOTO...
"""

import sys

import cv2
import numpy as np
from insightface.app import FaceAnalysis
from insightface.model_zoo.model_license import inspect_model_package_license


def main() -> None:
    package, output, size, *photos = sys.argv[1:]
    app = FaceAnalysis(package, providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(int(size), int(size)))
    found = [max(app.get(cv2.imread(photo)), key=lambda face: face.det_score) for photo in photos]
    np.savez(
        output,
        tasks=sorted(app.models),
        manifest=0 if app.model_package is None else app.model_package.manifest_version,
        license=inspect_model_package_license(package).status,
        boxes=[face.bbox for face in found],
        points=[face.kps for face in found],
        scores=[face.det_score for face in found],
        embeddings=[face.embedding for face in found],
        normalisation=[app.models["recognition"].input_mean, app.models["recognition"].input_std],
    )


if __name__ == "__main__":
    main()
