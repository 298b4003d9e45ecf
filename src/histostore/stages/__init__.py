"""The stages: functions of (store, spec) that read groups upstream, write one and commit last."""
