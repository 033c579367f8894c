"""What the columns of somebody's files mean, by their names: the one table of synonyms, and what follows from it."""

import re
from collections.abc import Iterable, Sequence

# By role, the surest name first; written in lower case without spaces, underscores and the like.
ROLES = {
    "user_id": (
        "userid user uid useridentifier customerid customer custid clientid client reviewerid visitorid "
        "visitor memberid member accountid account buyerid buyer shopperid shopper readerid reader listenerid "
        "playerid patronid borrowerid subscriberid personid profileid guestid username customeremail "
        "useremail email kundenid kundennummer kundennr kunde nutzer clienteid cliente utilisateur"
    ).split(),
    "item_id": (
        "itemid item iid parentasin asin productid product prodid sku productsku variantsku lineitemsku "
        "stockcode movieid filmid bookid isbn isbn13 articleid article artistid trackid songid gameid appid "
        "recipeid beerid newsid animeid courseid jobid listingid businessid gmapid hotelid placeid poiid "
        "venueid goodsid merchandiseid offerid contentid videoid postid productcode itemcode articlecode "
        "articlenumber itemnumber productnumber itemno productno ean upc gtin artikelid artikelnummer "
        "artikelnr artikel produktid produkt produit produitid producto productoid"
    ).split(),
    "timestamp": (
        "timestamp unixreviewtime unixtime unixtimestamp datetime eventtime eventtimestamp timestampms ts "
        "orderedat purchasedat createdat boughtat watchedat listenedat playedat ratedat reviewedat viewedat "
        "addedat occurredat createdtime orderdatetime orderdate purchasedate invoicedate transactiondate "
        "eventdate ratingdate reviewdate reviewtime purchasetime ordertime date dat day when time created "
        "bestelldatum datum zeitpunkt fecha horodatage"
    ).split(),
    "rating": (
        "rating ratings overall stars starrating score reviewscore ratingvalue bookrating userrating "
        "reviewrating bewertung sterne"
    ).split(),
}
ONLY_OF_ITEMS = {"item_id": ["id", "code", "handle", "number"]}  # too little beside a user
# What an item is called: text also where it looks like a number ("1984").
TITLES = frozenset(
    "title name itemname itemtitle productname producttitle movietitle booktitle tracktitle trackname songtitle "
    "lineitemname bezeichnung artikelbezeichnung artikelname produktname titel titre nom nombre".split()
)
# What else tells of an item in a file that also tells of users, where any other text may be about the user.
TEXTS = TITLES | frozenset(
    "description brand author authors artist artistname genre genres category categories itemdescription "
    "productdescription maker manufacturer publisher maincategory maincat beschreibung marke hersteller kategorie "
    "descripcion".split()
)


def plain(name: str) -> str:
    """A column's name without case, spaces and signs: "Customer ID" and customer_id are one."""
    return re.sub(r"[\W_]", "", name.lower())


def columns_for(role: str, names: Iterable[str], of_items: bool = False) -> list[str]:
    """The columns that may play a role, the surest first."""
    known = ROLES[role] + (ONLY_OF_ITEMS.get(role, []) if of_items else [])
    return sorted((name for name in names if plain(name) in known), key=lambda name: known.index(plain(name)))


def item_columns(interactions: Sequence[str], items: Sequence[str]) -> tuple[str | None, str | None]:
    """The item's id in both files: by a name that both have where one does, else each file's surest.

    A name that says "id" and stands in both files is the item's, whatever kind of thing it is (``beer_id``).
    """
    theirs, ours = columns_for("item_id", interactions), columns_for("item_id", items, of_items=True)
    for name in theirs:
        for other in ours:
            if plain(name) == plain(other):
                return name, other
    users = columns_for("user_id", interactions)
    shared = [
        n for n in interactions if n in items and plain(n).endswith("id") and n not in users and plain(n) != "id"
    ]
    if len(shared) == 1 and not theirs:
        return shared[0], shared[0]
    return next(iter(theirs), None), next(iter(ours), None)
