"""The report: throughput and limits of training, measured on any machine, as tables and plots."""
