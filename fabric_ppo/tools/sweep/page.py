def write_page(sweep):
    pass
