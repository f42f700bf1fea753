"""What people read: the report and its figures, the table of kept results, exported notebooks."""
