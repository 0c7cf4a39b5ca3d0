"""Making images: what comes before and after the models' own code, in whole numbers and seeds."""
