"""Great Expectations gate over the dataset, as a Prefect flow: `python -m flows.validate`."""

from flows.stage import main, stage_flow

validate = stage_flow("validate", "Great Expectations gate over the dataset")

if __name__ == "__main__":
    main(validate)
