# Installing: both libraries, headers, the built-in model, and what find_package(linnet) and pkg-config need.
# linnet::linnet is the shared library, linnet::static the archive (defined where its own libraries are found).
include(CMakePackageConfigHelpers)
set(LINNET_PACKAGE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/linnet)

set_target_properties(linnet_shared PROPERTIES EXPORT_NAME linnet)
set_target_properties(linnet PROPERTIES EXPORT_NAME static)
if(NOT LINNET_STATIC)
  install(TARGETS linnet_shared EXPORT linnetShared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT linnetShared NAMESPACE linnet:: DESTINATION ${LINNET_PACKAGE_FOLDER})
endif()
install(TARGETS linnet EXPORT linnetStatic ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT linnetStatic NAMESPACE linnet:: DESTINATION ${LINNET_PACKAGE_FOLDER})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/linnet DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(EXISTS ${PROJECT_SOURCE_DIR}/share/linnet)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/share/linnet DESTINATION ${CMAKE_INSTALL_DATADIR})
endif()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/linnetConfig.cmake.in ${PROJECT_BINARY_DIR}/linnetConfig.cmake
                              INSTALL_DESTINATION ${LINNET_PACKAGE_FOLDER})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/linnetConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/linnetConfig.cmake ${PROJECT_BINARY_DIR}/linnetConfigVersion.cmake
        DESTINATION ${LINNET_PACKAGE_FOLDER})

# pkg-config finds the rest from where it finds the file, so that an installed tree can be moved.
file(RELATIVE_PATH LINNET_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
set(LINNET_PC_PREFIX "\${pcfiledir}/${LINNET_PC_UP}")
configure_file(${CMAKE_CURRENT_LIST_DIR}/linnet.pc.in ${PROJECT_BINARY_DIR}/linnet.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/linnet.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
