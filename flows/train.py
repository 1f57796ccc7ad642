"""Dataset to editor, as a Prefect flow: `python -m flows.train`."""

from flows.stage import main, stage_flow

train = stage_flow("train", "Dataset to editor", gpu=True)

if __name__ == "__main__":
    main(train)
