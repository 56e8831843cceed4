"""What a finished run says: tables, plots and the regression check. Reads files only."""
