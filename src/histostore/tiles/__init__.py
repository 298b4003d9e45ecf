"""Where tiles lie, what they are called and how their pixels are read. No store is touched here."""
