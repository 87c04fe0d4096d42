"""The engine `ray`: workers on a Ray cluster, on one machine or many."""
