"""Reading data: training sets, the order of samples, batches, and verification sets."""
