"""What makes a model stronger: what it reads, what it learns, and what becomes of its predictions."""
