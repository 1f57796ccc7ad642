"""The page a run ends with, as a Prefect flow: `python -m flows.report`."""

from flows.stage import main, stage_flow

report = stage_flow("report", "The page a run ends with")

if __name__ == "__main__":
    main(report)
