"""Image pairs to a dataset by CLIP, as a Prefect flow: `python -m flows.filter`."""

from flows.stage import main, stage_flow

filter = stage_flow("filter", "Image pairs to a dataset by CLIP")

if __name__ == "__main__":
    main(filter)
