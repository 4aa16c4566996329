"""Files in the column layouts of the benchmarks' data sets, with problems of our own."""

import pathlib
from typing import Any

import datasets

LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "aime24": [
        {"id": 60 + i, "problem": f"Find ${i}+{i}$.", "solution": f"\\boxed{{{2 * i}}}", "answer": f"{2 * i:03d}",
         "url": "", "year": "2024"}
        for i in range(3)
    ],
    "aime25": [{"problem": f"Find ${i}+{i}$.", "answer": f"{2 * i}", "id": f"{i}"} for i in range(3)],
    "amc23": [{"id": i, "question": f"Find ${i}/2$.", "answer": i / 2, "url": ""} for i in range(3)],
    "gaokao2023en": [
        {"question": f"Find ${i}^2$.", "answer": f"${i * i}$", "source": "", "lang": "en", "sourcename": "", "id": 1}
        for i in range(3)
    ],
    "math500": [
        {"problem": f"Halve ${i}$.", "solution": "", "answer": f"\\frac{{{i}}}{{2}}", "subject": "Algebra", "level": 1,
         "unique_id": f"test/algebra/{i}.json"}
        for i in range(3)
    ],
    "gpqa_d": [
        {"Record ID": f"rec{i}", "Question": f"Which is {i}?\n", "Correct Answer": f"{i}\n",
         "Incorrect Answer 1": f"{i}1", "Incorrect Answer 2": f"{i}2 ", "Incorrect Answer 3": f"{i}3", "Subdomain": "x"}
        for i in range(40)
    ],
}  # fmt: skip


def write(name: str, suffix: str, folder: pathlib.Path) -> pathlib.Path:
    """The benchmark's stand-in as a file of one of the kinds that are read."""
    rows = datasets.Dataset.from_list(LAYOUTS[name])
    path = folder / f"{name}{suffix}"
    if suffix == ".parquet":
        rows.to_parquet(path)
    elif suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_json(path, lines=suffix == ".jsonl")
    return path
