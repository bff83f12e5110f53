"""What learns from rankings: reward model, scoring, generation, jobs. Importing this package loads no torch."""
