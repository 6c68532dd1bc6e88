//! Files and trees on their way through a connection.
