"""The GPU pod: a supervisor, slots that take jobs, and one engine that holds the model."""
