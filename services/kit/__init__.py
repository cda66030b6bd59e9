"""What makes a process a Qflow service: no business rules, and only tables that services share."""
