"""Valid small files of every format, and seeded mutations of them; `soak.py` runs many thousands."""

import gzip
import io
import signal
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import scipy.io
from dicom_files import set_pixels, transcode, write_enhanced, write_series
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from galip_hf.data.scans import read_scan, write_scan
from galip_hf.data.volumes import Volume
from galip_hf.model.errors import GalipError

SECONDS = 20  # a mutant that takes longer hangs
Compare = Callable[[Path, list[Volume]], str]
EXTREMES = [0, 1, 2, 255, 0x7F, 0x80, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def valid_files(folder: Path) -> dict[str, Path]:
    """Name of the format to a file of it."""
    rng = np.random.default_rng(11)
    stack = rng.random((3, 12, 10)).astype(np.float32)
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) * 1.5, [1, 2, 3])
    image = nib.Nifti1Image((stack * 1000).astype(np.int16), affine)
    image.set_qform(affine, 1)
    image.header.set_slope_inter(0.5, 3)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello"))
    image.to_filename(folder / "a.nii")
    image.to_filename(folder / "b.nii.gz")
    nib.Nifti2Image(np.stack([stack, stack], axis=-1), affine).to_filename(folder / "c.nii")
    nib.MGHImage(stack, affine).to_filename(folder / "a.mgz")
    nib.MGHImage((stack * 1000).astype(np.int16), affine).to_filename(folder / "a.mgh")
    (volume,) = read_scan(folder / "a.mgz")
    for name in ("a.nrrd", "a.mha"):
        write_scan(volume, folder / name)
    np.save(folder / "a.npy", stack)
    np.savez_compressed(folder / "a.npz", img=stack, note=np.zeros(3))
    scipy.io.savemat(folder / "v5.mat", {"img": stack, "note": "text"})
    scipy.io.savemat(folder / "v5z.mat", {"img": stack, "s": {"a": 1}}, do_compression=True)
    scipy.io.savemat(folder / "v4.mat", {"img": stack[0]}, format="4")
    write_scan(Volume.from_array(stack), folder / "v73.mat")
    Image.fromarray((stack[0] * 65535).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray((stack[0] * 255).astype(np.uint8)).save(folder / "shallow.png")
    write_scan(Volume.from_array(stack), folder / "float.tif")
    pages = [Image.fromarray(page) for page in (stack * 65535).astype(np.uint16)]
    pages[0].save(folder / "deflate.tif", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    for name in ("native", "deflated", "rle", "jpeg", "j2k"):
        (path,) = write_series(folder / name, slices=1)
        path = path.rename(folder / f"{name}.dcm")
        (folder / name).rmdir()
        slice_ = pydicom.dcmread(path)
        set_pixels(slice_, rng.integers(0, 4000, (64, 64)))
        slice_.save_as(path)
    for name, syntax in (("jpeg", "JPEGLosslessProcess14_1"), ("j2k", "JPEG2000Lossless")):
        import gdcm

        transcode(folder / f"{name}.dcm", getattr(gdcm.TransferSyntax, syntax))
    slice_ = pydicom.dcmread(folder / "deflated.dcm")
    slice_.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    slice_.save_as(folder / "deflated.dcm")
    slice_ = pydicom.dcmread(folder / "rle.dcm")
    slice_.compress(RLELossless)
    slice_.save_as(folder / "rle.dcm")
    write_enhanced(folder / "enhanced.dcm", slices=2)
    return {path.name: path for path in sorted(folder.iterdir())}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four mutations, half of them in the first kilobyte, where headers are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
        at = int(rng.integers(max(end, 1)))
        kind = rng.integers(7)
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            width = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice(EXTREMES)) % (1 << 8 * min(width, 8))
            data[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.7 else "big")
        elif kind == 3:
            value = rng.choice([0.0, -1.0, np.nan, np.inf, 1e38, 1e-38])
            data[at : at + 4] = np.float32(value).tobytes()
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        else:
            del data[max(at, 4) :]
    return bytes(data)


def mutant(name: str, content: bytes, seed: int) -> bytes:
    """Mutant `seed` of a file; half of the compressed ones are mutated inside their compression."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name.endswith((".gz", ".mgz")) and rng.random() < 0.7:
        return gzip.compress(mutate(gzip.decompress(content), rng), compresslevel=1)
    if name.endswith(".npz") and rng.random() < 0.7:
        return _mutant_of_archive(content, rng)
    return mutate(content, rng)


def _mutant_of_archive(content: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive whose first member is mutated, with a checksum that fits."""
    mutated = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(mutated, "w") as after:
        for number, name in enumerate(before.namelist()):
            after.writestr(name, before.read(name) if number else mutate(before.read(name), rng))
    return mutated.getvalue()


def outcome(path: Path, compare: Compare | None = None) -> str:
    """`volume`, finite and written and read again unchanged, or `refused` in one line; all else raises."""
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        volumes = read_scan(path)
        output = path.with_name("output.nii")
        write_scan(volumes, output, overwrite=True)
    except GalipError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path.parent)), str(error)
        return "refused"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    for volume, again in zip(volumes, read_scan(output), strict=True):
        assert np.isfinite(volume.array).all() and volume.array.ndim == 3
        np.testing.assert_array_equal(np.sort(again.array, axis=None), np.sort(volume.array, axis=None))
        if volume.source.header is not None:
            np.testing.assert_array_equal(again.to_source_array(), volume.to_source_array())
    output.unlink()
    return "volume" if compare is None else compare(path, volumes)


def _hang(*_: object) -> None:
    raise AssertionError(f"more than {SECONDS} s")


def run(
    files: dict[str, Path],
    folder: Path,
    seeds: range,
    report: Callable[[str, int], object],
    compare: Compare | None = None,
) -> Counter:
    """The outcomes of the mutants `seeds` of each file, by (format, outcome).

    Args:
        report: told of each mutant before it is read.
        compare: names the outcome of a mutant that was read, `volume` by default.
    """
    counts: Counter = Counter()
    for name, path in files.items():
        content = path.read_bytes()
        target = folder / f"mutant{''.join(path.suffixes)}"
        for seed in seeds:
            target.write_bytes(mutant(name, content, seed))
            report(name, seed)
            counts[name, outcome(target, compare)] += 1
            left = sorted(entry.name for entry in folder.iterdir())
            assert left == [target.name], left
        target.unlink()
    return counts
