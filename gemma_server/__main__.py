from gemma_server.cli.main import main

main()
