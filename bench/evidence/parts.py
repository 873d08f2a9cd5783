"""The blocks of a cell that is attacked piece by piece, and the cell that they become.

A block lies in the folder as a cell does, under an id of its own, until all are there.
"""

from __future__ import annotations

import pandas as pd
import torch

from bench.base.files import write_json, write_records, write_tensors
from bench.base.fingerprint import digest
from bench.base.types import DamagedError, Document
from bench.evidence.cells import Evidence
from bench.evidence.folder import RunFolder


def part_id(cell: str, block: int) -> str:
    """Return the id of one block of a cell."""
    return f"{cell}-{block}"


def standing(folder: RunFolder, cell: str, blocks: int, key: Document) -> set[int]:
    """Return the blocks of ``cell`` that lie in the folder whole, made of what ``key`` says."""
    return {block for block in range(blocks) if _stands(folder, part_id(cell, block), key)}


def _stands(folder: RunFolder, part: str, key: Document) -> bool:
    evidence = Evidence(folder, "cell", part)
    try:
        if evidence.document["evidence"] != digest(key):
            return False
        evidence.records(), evidence.inputs()
    except (DamagedError, KeyError, TypeError):
        return False
    return True


def join(folder: RunFolder, cell: str, blocks: int) -> None:
    """Make one cell of its blocks, in their order, and remove them; raises DamagedError.

    As of a cell that is attacked at once, what was only seen on the way comes after all attempts.
    """
    parts = [Evidence(folder, "cell", part_id(cell, block)) for block in range(blocks)]
    records = pd.concat([part.records() for part in parts], ignore_index=True)
    x_adv = torch.cat([part.inputs() for part in parts])
    seen = (records["status"] == "seen").to_numpy()
    order = [*(~seen).nonzero()[0], *seen.nonzero()[0]]
    if seen.any():
        records, x_adv = records.iloc[order].reset_index(drop=True), x_adv[torch.tensor(order)]
    paths = folder.files("cell", cell)
    files = {
        "inputs": write_tensors(paths["inputs"], {"x_adv": x_adv}),
        "records": write_records(paths["records"], records),
    }
    documents = [part.document for part in parts]
    queries = {
        name: sum(document["queries"][name] for document in documents)
        for name in ("forwards", "backwards")
    }
    differing = sum(document["differing"] for document in documents)
    found = {"id": cell, "files": files, "queries": queries, "differing": differing}
    write_json(folder.cell(cell), {**documents[0], **found})
    for part in parts:
        for path in (folder.cell(part.id), *folder.files("cell", part.id).values()):
            path.unlink(missing_ok=True)
