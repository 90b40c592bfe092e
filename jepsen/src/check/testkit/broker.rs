//! A model of a right broker.
