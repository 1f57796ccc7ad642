"""Editor against baselines on held-out edits, as a Prefect flow: `python -m flows.evaluate`."""

from flows.stage import main, stage_flow

evaluate = stage_flow("evaluate", "Editor against baselines on held-out edits", gpu=True)

if __name__ == "__main__":
    main(evaluate)
