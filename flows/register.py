"""Editor to the MLflow registry, through the gate, as a Prefect flow: `python -m flows.register`."""

from flows.stage import main, stage_flow

register = stage_flow("register", "Editor to the MLflow registry, through the gate", gpu=True)  # the champion may be measured again

if __name__ == "__main__":
    main(register)
