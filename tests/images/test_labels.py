"""Labels from a CSV file and the model's order of classes: in every usual form, each slip named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qconvert.errors import LabelError
from qconvert.images.folder import read_folder
from qconvert.images.labels import Labelled, from_csv, from_folders, is_table, read_classes

ROOT = Path("images")
FILES = [ROOT / name for name in ("a.png", "b.png", "deep/c.png", "deep/d e.png")]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labelled(folder: Path, table: str | bytes, classes: str | None = None) -> Labelled:
    classes_file = None if classes is None else write(folder / "classes.txt", classes)
    return from_csv(ROOT, FILES, write(folder / "labels.csv", table), classes_file)


def by_name(found: Labelled) -> dict[str, int]:
    return {
        path.relative_to(ROOT).as_posix(): label
        for path, label in zip(found.files, found.labels, strict=True)
    }


def refusal(call, *arguments) -> LabelError:
    with pytest.raises(LabelError) as caught:
        call(*arguments)
    return caught.value


ROWS = "deep/c.png,cat\nb.png,dog\na.png,cat\ndeep/d e.png,ant\n"


def test_names_are_numbered_in_sorted_order(tmp_path):
    found = labelled(tmp_path, "file,label\n" + ROWS)
    assert found.classes == ("ant", "cat", "dog")
    assert by_name(found) == {"a.png": 1, "b.png": 2, "deep/c.png": 1, "deep/d e.png": 0}
    assert list(found.files) == FILES
    assert found.notes == ()


def test_classes_file_sets_the_indexes(tmp_path):
    found = labelled(tmp_path, "file,label\n" + ROWS, "dog\nbird\ncat\nant\n")
    assert found.classes == ("dog", "bird", "cat", "ant")
    assert by_name(found) == {"a.png": 2, "b.png": 0, "deep/c.png": 2, "deep/d e.png": 3}


@pytest.mark.parametrize(
    "table",
    [
        b"label,file\ncat,a.png\ndog,b.png\n",
        b"file,label\r\na.png,cat\r\nb.png,dog\r\n",
        "file,label\na.png,cat\nb.png,dog\n".encode("utf-8-sig"),
        b"id, file , label,split\n7, a.png , cat ,train\n8,b.png,dog,\n",
        b'file,label\n"a.png","cat"\n"b.png",dog\n',
        b"file,label\n./a.png,cat\n./b.png,dog",
        b"file,label\na.png,cat\n\nb.png,dog\na.png,cat\n",
    ],
    ids=["order", "CRLF", "byte order mark", "more columns", "quotes", "dot", "repeated"],
)
def test_every_usual_form_of_a_table_is_read(tmp_path, table):
    found = labelled(tmp_path, table)
    assert by_name(found) == {"a.png": 0, "b.png": 1}
    assert found.classes == ("cat", "dog")


def test_images_without_a_row_are_left_out_with_a_note(tmp_path):
    found = labelled(tmp_path, "file,label\nb.png,dog\n")
    assert by_name(found) == {"b.png": 0}
    assert found.notes == ("3 of 4 images have no row in labels.csv and are left out",)


INDEXES = "file,label\na.png,10\nb.png,2\ndeep/c.png,0\n"


def test_integers_are_indexes_without_names(tmp_path):
    found = labelled(tmp_path, INDEXES)
    assert found.classes is None
    assert by_name(found) == {"a.png": 10, "b.png": 2, "deep/c.png": 0}


def test_integers_are_indexes_into_the_classes(tmp_path):
    names = [f"class {i}" for i in range(11)]
    found = labelled(tmp_path, INDEXES, "\n".join(names))
    assert found.classes == tuple(names)
    assert by_name(found) == {"a.png": 10, "b.png": 2, "deep/c.png": 0}


def test_integers_that_are_names_of_classes_are_names(tmp_path):
    found = labelled(tmp_path, INDEXES, "0\n10\n2\n5\n")
    assert by_name(found) == {"a.png": 1, "b.png": 2, "deep/c.png": 0}


def test_index_beyond_the_classes_is_refused(tmp_path):
    error = refusal(labelled, tmp_path, INDEXES, "cat\ndog\nant\n")
    classes = tmp_path / "classes.txt"
    assert error.facts == [f"the label 10 is beyond the 3 classes of {classes}"]
    assert error.where == str(tmp_path / "labels.csv")
    assert "count labels from 0" in error.fix


def test_unknown_labels_are_named_with_the_nearest_class(tmp_path):
    error = refusal(labelled, tmp_path, "file,label\na.png,cats\nb.png,7\n", "cat\ndog\n")
    classes = tmp_path / "classes.txt"
    assert error.facts == [
        f"label '7' is not in {classes}",
        f"label 'cats' is not in {classes}; did you mean 'cat'?",
    ]


@pytest.mark.parametrize(
    ("table", "facts"),
    [
        ("", ["has no column 'file' and no column 'label' in its first line; it has nothing"]),
        ("a.png,cat\n", ["has no column 'file' and no column 'label' in its first line; it has "
                         "a.png, cat"]),
        ("file;label\na.png;cat\n", ["has no column 'file' and no column 'label' in its first "
                                     "line; it has file;label"]),
        ("file,class\na.png,cat\n", ["has no column 'label' in its first line; it has "
                                     "file, class"]),
        ("file,label\n", ["has no row"]),
        ("file,label\na.png,cat\nb.png\n,dog\nc.png, \n",
         ["line 3: is not complete", "line 4: is not complete", "line 5: is not complete"]),
        ("file,label\nc.png,cat\na.png,cat\nimages/a.png,cat\n",
         ["line 2: there is no image 'c.png' in images",
          "line 4: there is no image 'images/a.png' in images"]),
        ("file,label\na.png,cat\nb.png,cat\na.png,dog\n",
         ["line 4: 'a.png' has two labels, 'cat' and 'dog'"]),
        ("file,label\na.png,käfer\n".encode("latin-1"), ["is not UTF-8 text"]),
    ],
    ids=["empty", "no header", "semicolons", "other column", "no row", "incomplete", "no image",
         "two labels", "latin-1"],
)  # fmt: skip
def test_wrong_table_is_refused_with_its_lines(tmp_path, table, facts):
    error = refusal(labelled, tmp_path, table)
    assert error.facts == facts
    assert error.where == str(tmp_path / "labels.csv")


def test_lost_table_is_named_with_the_reason(tmp_path):
    error = refusal(from_csv, ROOT, FILES, tmp_path / "labels.csv", None)
    assert error.where == str(tmp_path / "labels.csv")
    assert "No such file or directory" in error.facts[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "dog\n\n cat \nbird"),
        ("a.names", "dog\ncat\nbird\n"),
        ("a.json", ["dog", "cat", "bird"]),
        ("a.json", {"cat": 1, "dog": 0, "bird": 2}),
        ("a.json", {"1": "cat", "0": "dog", "2": "bird"}),
        ("a.JSON", {"2": ["bird", "b"], "0": ["dog", "d"], "1": ["cat", "c"]}),
    ],
    ids=["text", "other ending", "list", "class: index", "index: class", "index: [folder, class]"],
)
def test_classes_are_in_the_models_order(tmp_path, name, content):
    text = content if isinstance(content, str) else json.dumps(content)
    assert read_classes(write(tmp_path / name, text)) == ("dog", "cat", "bird")


SHAPE = "is no list of classes, {class: index} or {index: class} with every index from 0"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("[", "is not JSON: Expecting value: line 1 column 2 (char 1)"),
        ('["dog", 3]', SHAPE),
        ('{"dog": 0, "cat": 2}', SHAPE),
        ('{"dog": 1, "cat": 2}', SHAPE),
        ('{"0": "dog", "2": "cat"}', SHAPE),
        ('{"dog": "cat"}', SHAPE),
        ('{"0": ["n01", "dog"], "1": []}', SHAPE),
        ('{"dog": true}', SHAPE),
        ('"dog"', SHAPE),
        ('{"dog": 0, "cat": 0}', "gives one index to two classes"),
        ('{"0": "dog", "00": "cat"}', "gives one index to two classes"),
        (f'{{"{"1" * 5000}": "dog"}}', SHAPE),
        ("[" * 100_000, "is not JSON: is nested too deeply"),
        ('["dog", "cat", "dog"]', "names dog twice"),
        ('{"0": ["n01", "crane"], "1": ["n01", "crane"]}', "names n01 twice"),
        ("[]", "names no class"),
        ("{}", "names no class"),
    ],
)
def test_wrong_json_of_classes_is_refused(tmp_path, content, fact):
    error = refusal(read_classes, write(tmp_path / "classes.json", content))
    assert error.facts == [fact]
    assert error.where == str(tmp_path / "classes.json")


def test_classes_of_one_name_in_two_folders_are_two(tmp_path):
    """ImageNet has two cranes and two maillots: the folder tells them apart."""
    index = {"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}
    path = write(tmp_path / "imagenet.json", json.dumps(index))
    assert read_classes(path) == ("n02012849", "n03126707")


def test_lost_classes_file_is_named_with_the_reason(tmp_path):
    error = refusal(read_classes, tmp_path / "classes.txt")
    assert error.facts == ["cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("folders", "notes"),
    [
        (["0", "1", "2"], 0),
        (["08", "09", "10"], 0),
        (["cat", "10", "9"], 0),
        (["1", "9", "10"], 1),
    ],
)
def test_numbers_that_sort_as_text_in_another_order_are_noted(folders, notes):
    found = from_folders(ROOT, [ROOT / name / "a.png" for name in folders], None)
    assert found.classes == tuple(sorted(folders))
    assert len(found.notes) == notes
    if notes:
        assert "sorted as text as torchvision's ImageFolder does (1, 10, 9, …)" in found.notes[0]


@pytest.fixture
def folder(tmp_path, save_image) -> Path:
    for seed, path in enumerate(FILES):
        save_image(tmp_path / path, seed=seed)
    return tmp_path / ROOT


def test_images_of_a_table_are_in_sorted_order_with_all_notes(folder, tmp_path):
    (folder / "notes.txt").write_text("no image")
    table = write(tmp_path / "labels.csv", "file,label\ndeep/c.png,dog\na.png,cat\n")
    found = read_folder(folder, table, None)
    assert [path.name for path in found.files] == ["a.png", "c.png"]
    assert (found.labels, found.classes) == ((0, 1), ("cat", "dog"))
    assert found.notes == (
        "files that are no images are left out: 1 .txt",
        "2 of 4 images have no row in labels.csv and are left out",
    )


@pytest.mark.parametrize(
    ("table", "same"),
    [
        ("label,file\ncat,a.png\ndog,b.png\n", True),
        ("file,label\nb.png,dog\na.png,cat\n", True),
        ("file,label\na.png,dog\nb.png,cat\n", False),
        ("file,label\na.png,cat\nb.png,eel\n", False),
        ("file,label\na.png,cat\nb.png,dog\ndeep/c.png,cat\n", False),
        ("file,label\na.png,0\nb.png,1\n", False),
    ],
)
def test_digest_depends_on_the_labels_alone(folder, tmp_path, table, same):
    first = write(tmp_path / "first.csv", "file,label\na.png,cat\nb.png,dog\n")
    other = write(tmp_path / "other.csv", table)
    digests = [read_folder(folder, path, None).digest for path in (first, other)]
    assert (digests[0] == digests[1]) == same


@pytest.mark.parametrize(
    ("labels", "odd"),
    [(("0.0", "1.0", "10.0"), "0.0"), (("-1", "1"), "-1"), (("1", "2e0"), "2e0")],
    ids=["pandas", "negative", "exponent"],
)
def test_numbers_that_are_no_indexes_are_refused(tmp_path, labels, odd):
    rows = (f"{path.relative_to(ROOT)},{x}\n" for path, x in zip(FILES, labels, strict=False))
    error = refusal(labelled, tmp_path, "file,label\n" + "".join(rows))
    assert error.facts == [f"the labels are numbers but not whole ones from 0, as {odd!r}"]
    assert error.fix == "save labels as integers from 0, or name the classes in `data.classes`"


@pytest.mark.parametrize("labels", [("10_20", "20_30"), ("1.0", "cat"), ("nan", "inf")])
def test_names_that_look_like_numbers_are_names(tmp_path, labels):
    found = labelled(tmp_path, "file,label\na.png,{}\nb.png,{}\n".format(*labels))
    assert found.classes == tuple(sorted(labels))


def test_numbers_with_a_point_are_names_where_the_classes_say_so(tmp_path):
    found = labelled(tmp_path, "file,label\na.png,0.0\nb.png,1.0\n", "1.0\n0.0\n")
    assert by_name(found) == {"a.png": 1, "b.png": 0}


def test_label_of_thousands_of_digits_is_refused(tmp_path):
    error = refusal(labelled, tmp_path, f"file,label\na.png,{'7' * 5000}\n")
    assert error.facts == ["the label 777777777… of 5000 digits is no index of a class"]
    assert by_name(labelled(tmp_path, f"file,label\na.png,{'0' * 5000}7\n")) == {"a.png": 7}


@pytest.mark.parametrize(
    ("table", "is_one"),
    [
        (b"label, file\ncat,a.png\n", True),
        (b"filename,label\na.png,cat\n", False),
        ("file,label\na.png,käfer\n".encode("latin-1"), False),
        (None, False),
    ],
    ids=["table", "other column", "latin-1", "lost"],
)
def test_table_is_known_by_its_content(tmp_path, table, is_one):
    path = tmp_path / "labels.csv"
    if table is not None:
        write(path, table)
    assert is_table(path) == is_one
