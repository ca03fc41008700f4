"""One module for each family of models: what its configuration may say, and the script that goes with it."""
