//! Random histories of a right broker pass, and of one that breaks a promise do not.
