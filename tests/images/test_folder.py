"""A folder of images is listed in a fixed order, with labels, and every slip is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qconvert.errors import LabelError, NoImagesError
from qconvert.images.folder import ImageSet, read_folder

NAMES = ["dog/b.png", "cat/z.JPG", "dog/a.jpeg", "cat/deep/er/a.bmp", "bird-2/x.png", "bird/x.webp"]


@pytest.fixture
def folder(tmp_path, save_image) -> Path:
    for seed, name in enumerate(NAMES):
        save_image(tmp_path / "images" / name, seed=seed)
    (tmp_path / "images/cat/notes.txt").write_text("no image")
    return tmp_path / "images"


def names(images: ImageSet) -> list[str]:
    return [path.relative_to(images.root).as_posix() for path in images.files]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_images_are_sorted_and_labelled_by_folder(folder):
    images = read_folder(folder, "folders", None)
    assert names(images) == sorted(NAMES)
    assert images.classes == ("bird", "bird-2", "cat", "dog")
    assert [images.classes[label] for label in images.labels] == [
        name.split("/")[0] for name in names(images)
    ]
    assert len(images) == 6


def test_classes_file_sets_the_indices(folder):
    classes = write(folder / "classes.txt", "dog\n\n unused \ncat\nbird-2\nbird\n")
    images = read_folder(folder, "folders", classes)
    assert images.classes == ("dog", "unused", "cat", "bird-2", "bird")
    assert dict(zip(names(images), images.labels, strict=True)) == {
        "bird-2/x.png": 3, "bird/x.webp": 4, "cat/deep/er/a.bmp": 2, "cat/z.JPG": 2,
        "dog/a.jpeg": 0, "dog/b.png": 0,
    }  # fmt: skip


def test_no_labels_are_read_when_there_are_none(folder, save_image):
    save_image(folder / "loose.png")
    images = read_folder(folder, "none", None)
    assert images.labels is None
    assert images.classes is None
    assert names(images) == sorted([*NAMES, "loose.png"])


def test_every_unknown_class_folder_is_named(folder):
    classes = write(folder / "classes.txt", "cats\ndog\nbird\n")
    with pytest.raises(LabelError) as caught:
        read_folder(folder, "folders", classes)
    assert caught.value.facts == [
        f"folder 'bird-2' is not in {classes}; did you mean 'bird'?",
        f"folder 'cat' is not in {classes}; did you mean 'cats'?",
    ]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"dog\ncat\ndog\ncat\nbird\n", "names cat, dog twice"),
        (b" \n\n", "names no class"),
        ("dog\nkäfer\n".encode("latin-1"), "UTF-8"),
    ],
    ids=["twice", "empty", "latin-1"],
)
def test_wrong_classes_file_is_refused(folder, content, fact):
    path = folder / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(LabelError, match=fact) as caught:
        read_folder(folder, "folders", path)
    assert caught.value.where == str(path)


def test_classes_file_with_a_byte_order_mark_is_read(folder):
    path = folder / "classes.txt"
    path.write_bytes("bird\nbird-2\ncat\ndog\n".encode("utf-8-sig"))
    assert read_folder(folder, "folders", path).classes == ("bird", "bird-2", "cat", "dog")


def test_images_outside_class_folders_are_refused(folder, save_image):
    for name in ("b.png", "a.png"):
        save_image(folder / name)
    with pytest.raises(LabelError) as caught:
        read_folder(folder, "folders", None)
    assert caught.value.facts == ["2 images are in no class folder, the first is a.png"]
    assert "labels: none" in caught.value.fix


@pytest.mark.parametrize("labels", ["folders", "none"])
def test_folder_without_images_is_refused(tmp_path, labels):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/readme.txt").write_text("soon")
    with pytest.raises(NoImagesError, match="there is no image in this folder") as caught:
        read_folder(tmp_path, labels, None)
    assert caught.value.where == str(tmp_path)


def test_class_folders_may_be_links(folder, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(folder / name, target_is_directory=True)
    assert names(read_folder(linked, "folders", None)) == [
        "cat/deep/er/a.bmp", "cat/z.JPG", "dog/a.jpeg", "dog/b.png",
    ]  # fmt: skip


def change_content(root: Path) -> None:
    with (root / "dog/b.png").open("ab") as file:
        file.write(b"\0")


def change_classes(root: Path) -> None:
    write(root / "classes.txt", "dog\ncat\nbird\nbird-2\n")


CHANGES = {
    "content": change_content,
    "name": lambda root: (root / "dog/b.png").rename(root / "dog/c.png"),
    "added": lambda root: shutil.copy(root / "dog/b.png", root / "dog/d.png"),
    "removed": lambda root: (root / "dog/b.png").unlink(),
    "class": lambda root: (root / "dog/b.png").rename(root / "cat/b.png"),
    "order of classes": change_classes,
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with(folder, change):
    classes = write(folder / "classes.txt", "bird\nbird-2\ncat\ndog\n")
    before = read_folder(folder, "folders", classes)
    CHANGES[change](folder)
    assert read_folder(folder, "folders", classes).digest != before.digest


def test_digest_does_not_depend_on_where_the_folder_is(folder, tmp_path):
    before = read_folder(folder, "folders", None).digest
    write(folder / "dog/notes.txt", "not an image")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert read_folder(Path(moved), "folders", None).digest == before


def test_sample_is_seeded_and_sorted(tmp_path):
    for i in range(60):
        (tmp_path / f"{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"{i % 3}/{i:02}.png").write_bytes(bytes([i]))
    images = read_folder(tmp_path, "folders", None)
    one, same, other = images.sample(9, 1), images.sample(9, 1), images.sample(9, 2)
    assert one == same
    assert len(one) == len(set(one.files)) == 9
    assert one.files != other.files
    assert one.digest not in (images.digest, other.digest)
    assert list(one.files) == sorted(one.files)
    assert [path.parent.name for path in one.files] == [one.classes[i] for i in one.labels]
    # Drawn once: the choice must stay the same on every machine and in every version.
    assert names(images.sample(4, 7)) == ["0/27.png", "1/01.png", "1/16.png", "2/05.png"]


def test_sample_of_more_than_there_are_is_all(folder):
    images = read_folder(folder, "none", None)
    assert images.sample(6, 1) == images.sample(100, 2) == images
    assert images.sample(2, 3).labels is None


def test_files_that_are_no_images_are_counted_by_ending(folder):
    for name in ("a.txt", "b.HEIC", "README", ".hidden.png", "c.npy"):
        (folder / name).write_text("no image")
    images = read_folder(folder, "none", None)
    assert names(images) == sorted(NAMES)
    assert images.notes == (
        "files that are no images are left out: 1 without ending, 1 .heic, 1 .npy, 2 .txt",
    )


def test_arrays_are_images_where_there_are_no_others(tmp_path):
    for name in ("cat/b.npy", "dog/a.NPY"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    images = read_folder(tmp_path, "folders", None)
    assert (names(images), images.labels, images.notes) == (["cat/b.npy", "dog/a.NPY"], (0, 1), ())


def test_folder_of_other_files_says_which(tmp_path):
    for name in ("a.heic", "b.heic", "c.tar"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(NoImagesError) as caught:
        read_folder(tmp_path, "none", None)
    assert caught.value.facts == [
        "there is no image in this folder; it has other files: 2 .heic, 1 .tar"
    ]
    assert ".npy" in caught.value.fix


def test_link_that_leads_back_is_followed_once(folder):
    (folder / "cat/loop").symlink_to(folder, target_is_directory=True)
    assert names(read_folder(folder, "folders", None)) == sorted(NAMES)


def test_images_left_out_are_counted_and_change_the_digest(folder):
    images = read_folder(folder, "folders", None)
    assert images.without([]) == images
    left = images.without([images.files[1], images.files[4]])
    assert names(left) == [name for i, name in enumerate(sorted(NAMES)) if i not in (1, 4)]
    assert [left.classes[i] for i in left.labels] == [n.split("/")[0] for n in names(left)]
    assert (left.skipped, images.skipped) == (2, 0)
    assert left.digest != images.digest
    with pytest.raises(NoImagesError, match="none of the 6 images can be read"):
        images.without(images.files)
