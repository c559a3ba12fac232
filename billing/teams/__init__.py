"""Teams: one account pays, others sit on the seats that it pays for."""
