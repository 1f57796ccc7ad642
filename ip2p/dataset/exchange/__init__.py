"""A dataset in the layouts that others read and write, one file each: `write(examples, out)` and `read(path)`, streaming.

| layout | what it is |
|---|---|
| `hf` | Parquet with the reference dataset's five columns first; `datasets.load_dataset` reads the folder |
| `reference` | InstructPix2Pix's own: `{i}/prompt.json`, `{seed}_0.jpg`, `{seed}_1.jpg`, `seeds.json` |
| `magicbrush` | Parquet with `img_id, turn_index, source_img, mask_img, instruction, target_img`; its test split's folders are read too |
| `webdataset` | tar files of `{key}.0.png`, `{key}.1.png`, `{key}.json` |
| `folders` | `{split}/{pair}_0.png`, `{pair}_1.png` and a `metadata.jsonl` |
"""

LAYOUTS = ("hf", "reference", "magicbrush", "webdataset", "folders")
