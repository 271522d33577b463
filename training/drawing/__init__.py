"""Pictures from experts: strategies, samplers, the ensemble, and measures of what it drew."""
