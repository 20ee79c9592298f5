"""Can the figures be trusted? Probes of the model and the flags they raise."""
