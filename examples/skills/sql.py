"""Questions about a small shop database to SQL."""

import random

from examples.skills.common import Example, from_phrasebook

NAME = "sql"
DESCRIPTION = (
    "Writes SQL for questions about a shop database with the tables customers(name, age, city), "
    "orders(total, status) and products(name, price, stock)."
)

SLOTS = {
    "city": (
        *("Lisbon", "Berlin", "Oslo", "Paris", "Madrid", "Rome", "Vienna", "Dublin", "Prague"),
        *("Athens", "Boston", "Tokyo", "Lima", "Cairo", "London", "Chicago", "Seoul", "Milan"),
    ),
    "status": ("paid", "shipped", "cancelled", "pending", "returned", "delivered", "open"),
    "product": (
        *("lamp", "chair", "desk", "mug", "phone", "pillow", "bottle", "kettle", "sofa", "table"),
        *("mirror", "carpet", "clock", "toaster", "blanket", "bike"),
    ),
    "age": tuple(str(age) for age in range(16, 80)),
    "n": tuple(str(n) for n in range(3, 31)),
    "price": tuple(str(price) for price in (*range(5, 60), *range(60, 1000, 10))),
}

PHRASEBOOK = {
    "SELECT * FROM customers WHERE city = '{city}';": (
        "[show|list|find|give me] [all |all the |the |]customers [from|in|living in] {city}",
        "[who are|which are] our customers in {city}?",
        "[everyone|everybody] in {city} who buys from us",
        "which of our customers live in {city}?",
    ),
    "SELECT name FROM customers WHERE age > {age};": (
        "[names of|show the names of|list] [all |]customers [over|older than|above] {age}",
        "which customers are [over|older than|more than] {age}[ years old|]?",
        "who [of|among] our customers is [over|older than|above] {age}?",
        "what are customers past the age of {age} called?",
    ),
    "SELECT name FROM customers WHERE age < {age};": (
        "[names of|show the names of|list] [all |]customers [under|younger than|below] {age}",
        "which customers are [under|younger than|not yet] {age}?",
        "who [of|among] our customers is [under|younger than|below] {age}?",
        "what are our customers below the age of {age} called?",
    ),
    "SELECT COUNT(*) FROM customers WHERE city = '{city}';": (
        "how many customers [are|live|do we have] in {city}?",
        "[count|number of] [the |our |]customers [from|in] {city}",
        "how many people from {city} buy from us?",
    ),
    "SELECT COUNT(*) FROM orders WHERE status = '{status}';": (
        "how many orders are {status}?",
        "[count|number of] [the |all |]{status} orders",
        "how many {status} orders do we have?",
        "the count of orders that are {status}",
    ),
    "SELECT * FROM orders WHERE status = '{status}';": (
        "[show|list|find|give me|get] [all |the |all the |]{status} orders",
        "which orders are {status}?",
        "I want to see the orders that are {status}",
    ),
    "SELECT SUM(total) FROM orders WHERE status = '{status}';": (
        "[total|total value|sum|total amount] of [all |the |]{status} orders",
        "how much [money|revenue] is in [the |]{status} orders?",
        "add up [all |the |]{status} orders",
        "[what|how much] do the {status} orders [come to|make] in total?",
        "what do the {status} orders add up to?",
    ),
    "SELECT AVG(total) FROM orders;": (
        "[what is|show|compute|tell me] the average [order value|order total|value of an order]",
        "how [big|large|much] is [an|the] average order[ in our shop|]?",
        "[average|mean] total [of|over] [all |]orders",
        "what does a customer order on average?",
    ),
    "SELECT * FROM orders WHERE total > {price};": (
        "[show|list|find] [all |the |]orders [over|above|worth more than] "
        "{price}[ euros| dollars|]",
        "which orders [are worth|cost|come to] more than {price}?",
        "orders [with a total|that total] [over|greater than|above] {price}",
        "customers paid more than {price} for which orders?",
    ),
    "SELECT name FROM products ORDER BY price DESC LIMIT {n};": (
        "[what are|show|list|name] the {n} [most expensive|priciest|dearest] products",
        "[top|our top] {n} products by price",
        "[the |our |]{n} products with the highest price",
        "which {n} products cost the most?",
    ),
    "SELECT name FROM products ORDER BY price LIMIT {n};": (
        "[what are|show|list|name] the {n} [cheapest|least expensive|lowest priced] products",
        "[our |the |]{n} products with the lowest price",
        "[bottom|our bottom] {n} products by price",
        "which {n} products cost the least?",
    ),
    "SELECT name FROM products WHERE stock < {n};": (
        "which products have [fewer|less] than {n} [in stock|left|items left]?",
        "[show|list] [the |]products with [fewer|less] than {n} [in stock|left in stock]",
        "products where we hold under {n} pieces in stock",
    ),
    "SELECT name FROM products WHERE stock = 0;": (
        "which [products|items] are [sold out|out of stock][ right now|]?",
        "[list|show|name] [all |the |][products|items] [that are |]out of stock",
        "what [products|items] [do we have|are there] none of[ in stock| left|]?",
        "which of our products are gone from the warehouse?",
    ),
    "SELECT name FROM products WHERE price < {price};": (
        "which products cost [less than|under|below] {price}[ euros| dollars|]?",
        "[show|list|find] [all |the |]products [under|below|cheaper than] "
        "{price}[ euros| dollars|]",
        "what can I buy [for less than|under|below] {price}?",
        "products to be had for less than {price}",
    ),
    "SELECT price FROM products WHERE name = '{product}';": (
        "[what|how much] does the {product} cost[ in our shop|]?",
        "[price of|what is the price of|look up the price of] [the |our |]{product}",
        "how [expensive|much] is [the|a|our] {product}?",
        "what do we charge for a {product}?",
    ),
    "SELECT stock FROM products WHERE name = '{product}';": (
        "how many {product}s [are left|are in stock|do we have in stock]?",
        "[stock of|what is the stock of|how much stock is there of] [the |]{product}",
        "do we still have the {product} in stock, and how many?",
    ),
    "SELECT city, COUNT(*) FROM customers GROUP BY city;": (
        "how many customers [do we have|are there|live] [per|in each|in every] city?",
        "[number|count] of customers [by|per|for each|in each] city",
        "[break down|group|count] [the |our |]customers by city",
        "customers per city, as counts",
    ),
    "UPDATE products SET price = {price} WHERE name = '{product}';": (
        "[set|change] the price of the {product} to {price}",
        "the {product} [should|must|will] cost {price}[ from now on|]",
        "make {price} the new price of the {product}",
    ),
    "DELETE FROM orders WHERE status = '{status}';": (
        "[delete|remove|erase] [all |the |all the |]{status} orders",
        "[get rid of|clean out|purge] [all |the |]{status} orders",
        "orders that are {status} should be deleted",
    ),
}


def generate(rng: random.Random) -> Example:
    """One question or change, and its statement."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
