"""Parameters that a stage gives itself, so that a setting of them has no effect; and what says it instead."""

_STEPS = ("pipeline.training.loop.fit", "steps")
_PARAMETERS = ("components.refiners.adapter.Adapter", "parameters")
GIVEN = {  # by stage
    "stages.finetune.run": {_STEPS: "finetune.run.steps says how many steps it takes"},
    "stages.controls.run": {
        _STEPS: "controls take as many steps as the compute of the phases pays that they are compared with",
        _PARAMETERS: "the control without recursion has as many parameters as warmup trains",
    },
}
