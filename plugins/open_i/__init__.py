"""The Indiana University chest X-ray collection, as Open-I and as Kaggle distribute it."""
