from gemma_server.cli import main

main()
