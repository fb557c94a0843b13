"""Studies: many candidates measured on one data set and protocol, kept in a store, compared and recommended."""
