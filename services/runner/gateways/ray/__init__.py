"""Ray: runners as actors on a cluster's machines. The one place that imports it."""
